"""An Ollama Modelfile: the file, the chat template in Ollama's language, stop tokens and sampling settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export_service.gguf.ollama_template import ollama_template
from export_service.gguf.vocabulary import put_around
from modelkit.ending import template_source
from modelkit.inspection import read_json
from modelkit.templates import ChatTemplate

MAX_CONTEXT = 8192
SETTINGS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}


def write_modelfile(
    path: Path, gguf_name: str, *, tokenizer: Any, stops: Sequence[int], context_length: int, settings: Path
) -> Path:
    """Writes a Modelfile for a GGUF file beside it and returns its path. settings is a generation_config.json, if any.

    Where the chat template cannot be said in Ollama's language the file says so, and Ollama takes the one in the GGUF
    file. Raises OSError.
    """
    lines = [f"FROM ./{gguf_name}", *_template_lines(tokenizer)]
    ends = dict.fromkeys(number for number in (tokenizer.eos_token_id, *stops) if number is not None)
    names = tokenizer.convert_ids_to_tokens(list(ends))
    lines += [f"PARAMETER stop {_quoted(name)}" for name in names if name]
    lines.append(f"PARAMETER num_ctx {min(context_length, MAX_CONTEXT)}")
    given = read_json(settings) if settings.is_file() else {}
    lines += [f"PARAMETER {ours} {given[theirs]}" for theirs, ours in SETTINGS.items() if _is_number(given.get(theirs))]
    staging = path.with_name(f".{path.name}.tmp")
    staging.write_text("\n".join(lines) + "\n", encoding="utf-8")
    staging.replace(path)
    return path


def _template_lines(tokenizer: Any) -> list[str]:
    source = template_source(tokenizer)
    if source is None:
        return []
    tokens: Mapping[str, str] = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    begins, _ = put_around(tokenizer)
    template = ollama_template(ChatTemplate(source, tokens), skip=tokens.get("bos_token", "") if begins else "")
    if template is None:
        return ["# The chat template has no equivalent in Ollama's language; the one in the GGUF file is used."]
    return [f'TEMPLATE """{template}"""']


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
