"""How many tokens rows of a dataset have, counted with a model's own tokenizer file and without loading the model."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from modelkit.datasets.formats import LabelledText, Row

# What a chat template adds to each message: marks of its beginning, role and end.
TURN_TOKENS = 5
# Characters of a token where there is no tokenizer file that could be used.
CHARACTERS = 3.5


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
    try:
        status = path.stat()
        tokenizer = _load(str(path), status.st_mtime_ns, status.st_size)
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    except Exception:  # noqa: BLE001 - tokenizers raises plain Exception; a rough count serves as well
        return [round(len(text) / CHARACTERS) for text in texts]


@lru_cache(maxsize=4)
def _load(path: str, *_: int) -> Tokenizer:
    """A tokenizer by its path and the identity of the file's content; cutting and padding switched off."""
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
