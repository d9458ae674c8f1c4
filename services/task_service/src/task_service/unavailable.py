"""Services of the contract that this version does not offer yet: every method says so."""

from typing import Any, NoReturn

from google.protobuf.descriptor import ServiceDescriptor

from servicekit.errors import Unimplemented


def unavailable(service: ServiceDescriptor, what: str) -> Any:
    """A servicer whose every method raises Unimplemented."""

    async def refuse(_self: Any, _request: Any, _context: Any) -> NoReturn:
        raise Unimplemented(f"{what} are not available yet", reason="NOT_IMPLEMENTED", metadata={"what": service.name})

    return type(f"Unavailable{service.name}", (), {method.name: refuse for method in service.methods})()
