"""How many tokens rows of a dataset have, counted with a model's own tokenizer file and without loading the model."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import orjson

from modelkit import apart
from modelkit.datasets.formats import LabelledText, Row

# What a chat template adds to each message: marks of its beginning, role and end.
TURN_TOKENS = 5
# Characters of a token where there is no tokenizer file that could be used.
CHARACTERS = 3.5
BOUNDS = apart.Bounds(2 << 30, cpu_seconds=20)


def token_lengths(model_dir: Path, rows: Sequence[Row]) -> list[int]:
    """Tokens of each row, roughly: the chat template counts with a few tokens a message."""
    texts = [_texts(row) for row in rows]
    flat = [text for pieces in texts for text in pieces]
    counts = iter(_count(model_dir / "tokenizer.json", flat))
    return [sum(next(counts) + (TURN_TOKENS if len(pieces) > 1 else 1) for _ in pieces) for pieces in texts]


def _texts(row: Row) -> list[str]:
    if isinstance(row, str):
        return [row]
    if isinstance(row, LabelledText):
        return [row.text]
    return [message["content"] for message in row]


def _count(path: Path, texts: list[str]) -> list[int]:
    """Exactly by the tokenizer, which runs apart, or else by the characters."""
    try:
        if not path.is_file():
            raise FileNotFoundError(path)
        with tempfile.NamedTemporaryFile() as file:
            file.write(orjson.dumps(texts))
            file.flush()
            with apart.running("modelkit.token_counts:write_counts", str(path), file.name, bounds=BOUNDS) as output:
                counts: list[int] = orjson.loads(output.read() or b"[]")
            return counts
    except (ValueError, OSError, TypeError):  # TypeError: half a surrogate pair has no UTF-8
        return [round(len(text) / CHARACTERS) for text in texts]
