"""What llama.cpp makes of a GGUF file, in a process of its own that may neither grow nor last without end."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export_service.gguf.process import Limits, ProcessFailed, run
from export_service.parity.reference import REPLY_TOKENS, Readings
from modelkit.errors import ModelkitError, Problem

CHILD = Path(__file__).with_name("llama_child.py")  # started as a file: it needs nothing of this package
SPARE_BYTES = 8 << 30
SECONDS = 1800.0


class GgufUnreadable(ModelkitError):
    """llama.cpp cannot load or run a file."""

    reason = "GGUF_UNREADABLE"


@dataclass(frozen=True, slots=True)
class LlamaAnswer:
    """Token numbers of each text, and readings of each sequence."""

    tokens: list[list[int]]
    readings: Readings


def ask(
    path: Path,
    sequences: Sequence[Sequence[int]],
    texts: Sequence[str],
    *,
    adapter: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> LlamaAnswer:
    """Has llama.cpp tokenise texts and read token sequences. adapter is a GGUF file with an adapter.

    tick is called a few times a second and may raise to end it. Raises GgufUnreadable with llama.cpp's words.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-parity-") as folder:
        answer = Path(folder) / "answer.npz"
        job = {
            "model": str(path),
            "adapter": str(adapter) if adapter else None,
            "sequences": [list(sequence) for sequence in sequences],
            "texts": list(texts),
            "kept": REPLY_TOKENS,
            "answer": str(answer),
            "memory": 3 * path.stat().st_size + SPARE_BYTES,
        }
        try:
            tokens = json.loads(run(CHILD, job, Limits(SECONDS, tick)))
        except ProcessFailed as error:
            raise GgufUnreadable(Problem("", f"{path.name}: llama.cpp cannot run it: {error}")) from error
        with np.load(answer) as found:
            return LlamaAnswer(tokens, Readings(float(found["loss"]), found["logits"]))
