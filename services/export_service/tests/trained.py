"""Small base models, adapters and whole models as the trainer leaves them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelkit import scratch
from modelkit.identity import weights_sha256
from services.modelkit.tests.adapted import adapt

CORPUS = Path(json.__file__).read_text()
ROWS = tuple(
    [{"role": "user", "content": f"What is {number} and {number}?"}, {"role": "assistant", "content": f"{2 * number}."}]
    for number in range(12)
)


def base_model(folder: Path, *, family: str = "llama", hidden_size: int = 256) -> Path:
    """A base model; rows of 256 suit every GGUF type."""
    return scratch.build(
        folder, family=family, hidden_size=hidden_size, layers=2, vocab_size=512, corpus=[CORPUS]
    ).directory


def trained_adapter(base: Path, folder: Path, *, labels: Sequence[str] = (), **settings: Any) -> Path:
    """An adapter with its tokenizer and what training leaves beside it."""
    adapt(base, folder, labels=tuple(labels), **settings)
    if labels:
        (folder / "labels.json").write_text(json.dumps(list(labels)))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base / name, folder / name)
    origin = {"base_model": base.name, "base_model_sha256": weights_sha256(base)}
    (folder / "trainer_state.json").write_text(json.dumps({"origin": origin}))
    (folder / "optimizer.pt").write_bytes(b"not a model" * 1000)
    return folder
