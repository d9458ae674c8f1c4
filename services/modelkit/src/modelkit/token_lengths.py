"""How many tokens rows of a dataset have, counted with a model's own tokenizer file and without loading the model."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import orjson

from modelkit import apart
from modelkit.datasets.formats import LabelledText, Message, Row

# What is added to each message where no chat template says what: marks of its beginning, role and end; to a text.
TURN_TOKENS, END_TOKENS = 5, 1
# Characters of a token where there is no tokenizer file that could be used.
CHARACTERS = 3.5
BOUNDS = apart.Bounds(2 << 30, cpu_seconds=20)


def token_lengths(model_dir: Path, rows: Sequence[Row]) -> list[int]:
    """Tokens of each row, of conversations with what the model's chat template adds.

    Tokenizer and template run apart. Where they cannot be used the count is rough.
    """
    written = [row.text if isinstance(row, LabelledText) else row for row in rows]
    try:
        if not (model_dir / "tokenizer.json").is_file():
            raise FileNotFoundError(model_dir / "tokenizer.json")
        with tempfile.NamedTemporaryFile() as file:
            file.write(orjson.dumps(written))
            file.flush()
            entry = "modelkit.token_counts:write_counts"
            with apart.running(entry, str(model_dir), file.name, bounds=BOUNDS) as output:
                counts: list[int] = orjson.loads(output.read() or b"[]")
            return counts
    except (ValueError, OSError, TypeError):  # TypeError: half a surrogate pair has no UTF-8
        return [_roughly(row) for row in written]


def _roughly(row: str | Sequence[Message]) -> int:
    if isinstance(row, str):
        return round(len(row) / CHARACTERS) + END_TOKENS
    return sum(round(len(message["content"]) / CHARACTERS) + TURN_TOKENS for message in row)
