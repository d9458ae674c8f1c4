"""What this version can do, told apart from what the contract has room for."""

from servicekit.errors import Unimplemented
from tunesmith.task.v1 import spec_pb2

KINDS = {"prepare": "dataset preparation"}


def require_available(spec: spec_pb2.TaskSpec) -> None:
    """Raises Unimplemented, with a reason for programs, for work that this version cannot do."""
    kind = spec.WhichOneof("work") or ""
    if kind in KINDS:
        raise _not_available(f"tasks for {KINDS[kind]} are not available yet", "KIND_NOT_AVAILABLE", kind)
    modality = spec.finetune.WhichOneof("modality") or ""
    if kind == "finetune" and modality != "language_model":
        words = modality.replace("_", "-")
        raise _not_available(f"training of {words} models is not available yet", "MODALITY_NOT_AVAILABLE", modality)


def _not_available(message: str, reason: str, what: str) -> Unimplemented:
    return Unimplemented(message, reason=reason, metadata={"what": what})
