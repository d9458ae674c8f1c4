"""Types that mix others, and those that want an importance matrix: llama.cpp's own quantizer, in a process of its own.

A process, because the library ends its process where others raise an error, and holds memory of its own.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export_service.gguf.container import publish
from export_service.gguf.errors import QuantizationFailed
from export_service.gguf.file_types import FileType
from export_service.gguf.process import Limits, ProcessFailed, run
from modelkit.errors import Problem
from modelkit.number_formats import Floats

CHILD = Path(__file__).with_name("mixing_child.py")  # started as a file: it needs nothing of this package


def mix(
    source: Path,
    target: Path,
    kind: FileType,
    importance: Mapping[str, Floats] | None = None,
    *,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Quantizes a GGUF file to another. importance is one number per column, by tensor.

    tick is called a few times a second and may raise to end it. Raises QuantizationFailed with llama.cpp's words, or
    OSError; nothing is left under the target's name then.
    """
    staging = target.with_name(f".{target.name}.tmp")
    with tempfile.TemporaryDirectory(prefix="tunesmith-gguf-") as folder:
        matrix = Path(folder) / "importance.npz"
        if importance:
            arrays: dict[str, Any] = dict(importance)
            np.savez(matrix, **arrays)
        job = {
            "source": str(source),
            "target": str(staging),
            "file_type": int(kind.number),
            "importance": str(matrix) if importance else None,
        }
        try:
            run(CHILD, job, Limits(tick=tick))
            publish(staging, target)
        except ProcessFailed as error:
            message = f"llama.cpp could not quantize to {kind.name}: {error}"
            raise QuantizationFailed(Problem("quantizations", message)) from error
        finally:
            staging.unlink(missing_ok=True)
