"""Converts a ChatGLM checkpoint into a cache, once for each state of its files."""

import hashlib
import os
from pathlib import Path
from typing import Any

import orjson

from modelkit import apart
from modelkit.chatglm.config import equivalent_config, generation
from modelkit.datasets.cache import DataCache
from modelkit.errors import InvalidModel, Problem

VERSION = 2  # of the conversion; another one converts anew
WEIGHTS = ".safetensors"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Beside three times the largest file of weights; and by their size in all, at so many bytes a second.
MEMORY_BYTES, LEAST_CPU_SECONDS, SLOWEST_BYTES = 4 << 30, 300, 4 << 20


def convert(source: Path, cache: DataCache, *, sha256: str) -> Path:
    """The converted model of a checked checkpoint, from the cache when it is there.

    sha256 identifies the checkpoint. Of several that ask for it at once one converts, the others wait. Raises
    InvalidModel, or OSError; then nothing is left behind.
    """
    return cache.get(_key(source, sha256), lambda folder: _convert_apart(source, folder))


def _convert_apart(source: Path, target: Path) -> None:
    """The service loads neither a training library nor what a stranger's tokenizer may lead one to do."""
    sizes = [shard.stat().st_size for shard in shards_of(source)]
    bounds = apart.Bounds(MEMORY_BYTES + 3 * max(sizes), LEAST_CPU_SECONDS + sum(sizes) // SLOWEST_BYTES)
    try:
        with apart.running("modelkit.chatglm.writing:write", str(source), str(target), bounds=bounds) as said:
            said.read()
    except apart.Refused as error:
        raise InvalidModel(Problem("base_model", f"{source}: it cannot be converted: {error}")) from error


def convert_outline(source: Path, target: Path) -> dict[str, Any]:
    """Writes configuration and tokenizer alone, which is quick; the former's content. Raises InvalidModel, OSError."""
    from modelkit.chatglm.tokenizer import convert_tokenizer

    original = orjson.loads((source / "config.json").read_bytes())
    config = equivalent_config(original, source)
    (target / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
    settings = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    (target / "generation_config.json").write_bytes(orjson.dumps(settings, option=orjson.OPT_INDENT_2))
    try:
        convert_tokenizer(
            source / "tokenizer.model",
            target,
            generation=generation(original, source),
            max_length=config["max_position_embeddings"],
        )
    except ValueError as error:
        raise InvalidModel(Problem("base_model", f"the tokenizer cannot be converted: {error}")) from error
    return config


def shards_of(source: Path) -> list[Path]:
    """The files of a checkpoint's weights."""
    if not (source / INDEX).is_file():
        return [source / SINGLE]
    names = sorted(set(orjson.loads((source / INDEX).read_bytes())["weight_map"].values()))
    return [source / Path(name).name for name in names]


def _key(source: Path, sha256: str) -> str:
    """Changes with the version, the checkpoint, and the size and time of its files."""
    digest = hashlib.sha256(f"{VERSION} {sha256}".encode())
    for path in sorted(source.iterdir()):
        if path.suffix in (WEIGHTS, ".model", ".json"):
            found = os.stat(path)  # noqa: PTH116 - follows links, as reading does
            digest.update(f"\0{path.name} {found.st_size} {found.st_mtime_ns}".encode())
    return f"chatglm-{digest.hexdigest()[:32]}"
