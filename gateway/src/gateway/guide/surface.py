"""A table of routes below a prefix, with the checks and the errors that every route of the training guide has."""

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.guide import errors
from gateway.guide.call import Call
from gateway.guide.spool import Spool
from gateway.settings import GatewaySettings
from servicekit.errors import Internal, TunesmithError, Unauthenticated, from_rpc_error
from servicekit.identity import Principal, TokenVerifier

logger = logging.getLogger(__name__)

Action = Callable[[Call], Awaitable[Any]]
Row = tuple[str, str, Action]


def surface(prefix: str, table: Iterable[Row], settings: GatewaySettings, spool: Spool) -> BaseRoute:
    """Routes of (verb, path, action) below a prefix; an action's result is answered as JSON unless it is an answer."""
    verifier = TokenVerifier(settings.public_key_file.read_bytes()) if settings.public_key_file else None
    routes = [
        Route(path, _endpoint(prefix + path, action, verifier, settings, spool), methods=[verb])
        for verb, path, action in table
    ]
    return Mount(prefix, Starlette(routes=routes, exception_handlers={HTTPException: _http_error}))


def _endpoint(
    path: str, action: Action, verifier: TokenVerifier | None, settings: GatewaySettings, spool: Spool
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            call = Call(request, settings, spool)
            call.http.route = path
            # The services check tokens too; here a bad one is told before anything is read.
            if verifier is not None:
                call.user = verify(verifier, call.http.header(b"authorization")).user
            result = await action(call)
            return result if isinstance(result, Response) else errors.answer(result)
        except TunesmithError as error:
            return errors.failed(error)
        except grpc.aio.AioRpcError as error:
            return errors.failed(from_rpc_error(error))
        except Exception:
            error_id = secrets.token_hex(8)
            logger.exception("%s %s failed (error id %s)", request.method, path, error_id)
            return errors.failed(Internal(f"internal error; the gateway's log has it under id {error_id}"))

    return endpoint


def verify(verifier: TokenVerifier, authorization: str) -> Principal:
    """The caller that a header's token names. Raises Unauthenticated."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the request carries no token", reason="TOKEN_MISSING")
    return verifier.verify(token)


async def _http_error(_: Request, error: Exception) -> Response:
    """Errors of the routing itself."""
    assert isinstance(error, HTTPException)
    response = errors.answer({"detail": error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response
