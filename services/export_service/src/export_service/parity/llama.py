"""What llama.cpp makes of a GGUF file, in a process of its own that may neither grow nor last without end."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export_service.parity.reference import REPLY_TOKENS, Readings
from modelkit.errors import ModelkitError, Problem

CHILD = Path(__file__).with_name("llama_child.py")  # started as a file: it needs nothing of this package
SPARE_BYTES = 8 << 30
SECONDS = 1800.0
TOLD_CHARACTERS = 600


class GgufUnreadable(ModelkitError):
    """llama.cpp cannot load or run a file."""

    reason = "GGUF_UNREADABLE"


@dataclass(frozen=True, slots=True)
class LlamaAnswer:
    """Token numbers of each text, and readings of each sequence."""

    tokens: list[list[int]]
    readings: Readings


def ask(
    path: Path, sequences: Sequence[Sequence[int]], texts: Sequence[str], *, adapter: Path | None = None
) -> LlamaAnswer:
    """Has llama.cpp tokenise texts and read token sequences. adapter is a GGUF file with an adapter.

    Raises GgufUnreadable with llama.cpp's words.
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
            done = subprocess.run(
                [sys.executable, "-P", str(CHILD)],
                input=json.dumps(job),
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise GgufUnreadable(Problem("", f"{path.name}: llama.cpp took more than {SECONDS:.0f} s")) from error
        if done.returncode:
            words = done.stderr.strip()[-TOLD_CHARACTERS:]
            message = f"{path.name}: llama.cpp cannot run it (status {done.returncode}): {words}"
            raise GgufUnreadable(Problem("", message))
        with np.load(answer) as found:
            return LlamaAnswer(json.loads(done.stdout), Readings(float(found["loss"]), found["logits"]))
