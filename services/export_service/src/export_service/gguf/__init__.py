"""GGUF files and what Ollama wants beside them, written from a base model and an adapter.

What writes them loads PyTorch, and does so when it is first used: the service only asks what is possible.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from export_service.gguf.errors import GgufNotPossible, QuantizationFailed
from export_service.gguf.file_types import FILE_TYPES
from export_service.gguf.problems import problems

if TYPE_CHECKING:
    from export_service.gguf.adapter_file import write_adapter
    from export_service.gguf.job import GgufJob, tokenizer_of, write

__all__ = [
    "FILE_TYPES",
    "GgufJob",
    "GgufNotPossible",
    "QuantizationFailed",
    "problems",
    "tokenizer_of",
    "write",
    "write_adapter",
]

_WRITERS = {"GgufJob": "job", "tokenizer_of": "job", "write": "job", "write_adapter": "adapter_file"}


def __getattr__(name: str) -> Any:
    if name not in _WRITERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WRITERS[name]}"), name)
