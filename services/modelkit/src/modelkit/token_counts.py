"""Tokens of rows, for a process of its own: a tokenizer's file may hold patterns that never end, and a chat template
code."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson
from tokenizers import Tokenizer

from modelkit.token_lengths import END_TOKENS, TURN_TOKENS

if TYPE_CHECKING:
    from modelkit.templates import ChatTemplate

Count = Callable[[list[str]], list[int]]


def write_counts(output: IO[bytes], model_dir: str, rows_file: str) -> None:
    """Writes how many tokens each of the rows in a JSON file has: texts, and conversations as the model's chat template
    writes them. Raises what the tokenizer raises, OSError."""
    rows = orjson.loads(Path(rows_file).read_bytes())
    tokenizer = Tokenizer.from_file(f"{model_dir}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    texts = iter(count([row for row in rows if isinstance(row, str)]))
    conversations = [row for row in rows if not isinstance(row, str)]
    lengths = iter(_conversations(conversations, Path(model_dir), count) if conversations else [])
    found = [next(texts) + END_TOKENS if isinstance(row, str) else next(lengths) for row in rows]
    output.write(orjson.dumps(found))


def _conversations(conversations: list[Any], model_dir: Path, count: Count) -> list[int]:
    """Roughly where the template does not show them."""
    from modelkit.errors import InvalidTemplate

    try:
        template = _template(model_dir)
        with template.time_limit():
            rendered = [template.render(messages) for messages in conversations]
        return count(rendered)
    except InvalidTemplate:
        pieces = iter(count([message["content"] for messages in conversations for message in messages]))
        return [sum(next(pieces) + TURN_TOKENS for _ in messages) for messages in conversations]


def _template(model_dir: Path) -> "ChatTemplate":
    """That of the model, or the one that a training gives it. Raises InvalidTemplate, ValueError, OSError."""
    from modelkit.templates import FALLBACK, ChatTemplate  # its sandbox takes a second to load

    config = _settings(model_dir / "special_tokens_map.json") | _settings(model_dir / "tokenizer_config.json")
    file = model_dir / "chat_template.jinja"
    source = file.read_text("utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default") or next(iter(named.values()), None)
    tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
    return ChatTemplate(source or FALLBACK, {name: text for name, text in texts.items() if isinstance(text, str)})


def _settings(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(path.read_bytes()) if path.is_file() else {}
    return found
