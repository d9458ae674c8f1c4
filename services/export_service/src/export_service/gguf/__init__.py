"""GGUF files and what Ollama wants beside them, written from a base model and an adapter."""

from export_service.gguf.adapter_file import write_adapter
from export_service.gguf.errors import GgufNotPossible, QuantizationFailed
from export_service.gguf.file_types import FILE_TYPES
from export_service.gguf.job import GgufJob, write
from export_service.gguf.problems import problems

__all__ = ["FILE_TYPES", "GgufJob", "GgufNotPossible", "QuantizationFailed", "problems", "write", "write_adapter"]
