"""Tokens of texts, for a process of its own: a tokenizer's file may hold patterns that never end."""

from pathlib import Path
from typing import IO

import orjson
from tokenizers import Tokenizer


def write_counts(output: IO[bytes], tokenizer_file: str, texts_file: str) -> None:
    """Writes how many tokens each of the texts in a JSON file has. Raises what the tokenizer raises, OSError."""
    texts = orjson.loads(Path(texts_file).read_bytes())
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    output.write(orjson.dumps([len(encoding.ids) for encoding in encoded]))
