"""What the files of an export are called."""

import re

from tunesmith.task.v1 import spec_pb2

DEFAULT_TYPE = "Q4_K_M"
MERGED_STEM = "merged_model"
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
FORMAT_WORDS = {
    spec_pb2.EXPORT_FORMAT_ADAPTER: "adapter",
    spec_pb2.EXPORT_FORMAT_MERGED: "merged",
    spec_pb2.EXPORT_FORMAT_GGUF: "gguf",
    spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER: "gguf_adapter",
    spec_pb2.EXPORT_FORMAT_GGUF_BASE: "gguf_base",
}


def format_word(form: "spec_pb2.ExportFormat.ValueType") -> str:
    """The format as jobs and logs name it, for example "gguf_base"."""
    return FORMAT_WORDS[form]


def model_stem(base_model: str) -> str:
    """The last part of a base model's name, fit for a file: "chatglm3-6b" of "THUDM/chatglm3-6b"."""
    last = base_model.removeprefix("task:").rstrip("/").rpartition("/")[2]
    return UNSAFE.sub("_", last).strip("._") or "model"


def adapter_archive(task_id: str) -> str:
    """The ZIP of an adapter."""
    return f"lora_adapter_{task_id}.zip"


def adapter_gguf(step: int) -> str:
    """The GGUF of an adapter; step 0 is the final model."""
    return f"{f'checkpoint-{step}' if step else 'final'}-lora.gguf"
