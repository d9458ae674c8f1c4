"""Looks at the training libraries from inside a child, because the service process never loads them."""

import json
import os
from pathlib import Path
from typing import Any

from workerkit.launcher import EVENTS_FD_VARIABLE


def run(_: Path) -> int:
    """Writes one JSON object with what was found to the event pipe."""
    found = {
        "compute": _attempt(_compute),
        "bf16": _attempt(_bf16),
        "quantization": _attempt(_quantization),
        "cuda": _attempt(_cuda),
    }
    os.write(int(os.environ[EVENTS_FD_VARIABLE]), json.dumps(found).encode() + b"\n")
    return 0


def _attempt(check: Any) -> dict[str, Any]:
    try:
        return {"ok": True, "found": check()}
    except Exception as error:  # noqa: BLE001 - whatever is broken is the finding
        return {"ok": False, "found": f"{type(error).__name__}: {error}"}


def _compute() -> str:
    """A layer and its gradient, as training needs them."""
    import torch

    layer = torch.nn.Linear(8, 8)
    layer(torch.ones(2, 8)).sum().backward()
    if layer.weight.grad is None:
        raise RuntimeError("no gradient came back")
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def _bf16() -> str:
    import torch

    product = torch.ones(8, 8, dtype=torch.bfloat16) @ torch.ones(8, 8, dtype=torch.bfloat16)
    if float(product[0, 0]) != 8.0:
        raise RuntimeError("a product of bfloat16 matrices is wrong")
    return "bfloat16"


def _quantization() -> str:
    """A matrix in 4 bits and back, as QLoRA needs it."""
    import torch
    from bitsandbytes import __version__, functional

    matrix = torch.linspace(-1, 1, 4096).reshape(64, 64)
    code, state = functional.quantize_4bit(matrix, quant_type="nf4")
    if float((functional.dequantize_4bit(code, state) - matrix).abs().max()) > 0.2:
        raise RuntimeError("a matrix is not itself again after quantization")
    return f"bitsandbytes {__version__}"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    count = torch.cuda.device_count()
    torch.ones(8, device="cuda").sum().item()
    return f"CUDA {torch.version.cuda}, {count} devices"
