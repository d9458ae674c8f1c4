"""What a merged model has beside its weights: configuration, tokenizer, chat template, generation settings."""

import shutil
from pathlib import Path

import orjson

from modelkit.inspection import TOKENIZERS, read_json, without_unsafe
from modelkit.merging.plan import MergePlan

GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    *TOKENIZERS,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
SETTINGS = "tokenizer_config.json"
MORE_TEMPLATES = "additional_chat_templates"


def carry(plan: MergePlan, target: Path) -> None:
    """Writes everything but the weights. What the adapter has of it wins over the base model's. Raises OSError."""
    write_json(target / "config.json", plan.config)
    adapter = plan.adapter.directory if plan.adapter else plan.directory
    generation = next((path for path in (adapter / GENERATION, plan.directory / GENERATION) if path.is_file()), None)
    if generation is not None:
        write_json(target / GENERATION, _safe_json(generation))
    own = any((adapter / name).is_file() for name in TOKENIZERS)
    copy_tokenizer(adapter if own else plan.directory, target)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer with its chat templates. Raises OSError."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / SETTINGS).is_file():
        write_json(target / SETTINGS, _safe_json(source / SETTINGS))
    if (source / MORE_TEMPLATES).is_dir():
        (target / MORE_TEMPLATES).mkdir()
        for path in sorted((source / MORE_TEMPLATES).glob("*.jinja")):
            shutil.copyfile(path, target / MORE_TEMPLATES / path.name)


def write_json(path: Path, content: object) -> None:
    """Writes JSON for people to read. Raises OSError."""
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))


def _safe_json(path: Path) -> object:
    """A JSON file without what makes a loader run code."""
    return without_unsafe(read_json(path))[0]
