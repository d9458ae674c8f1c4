"""Converts a ChatGLM checkpoint into a cache, once for each state of its files."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from modelkit.chatglm.config import equivalent_config, generation
from modelkit.datasets.cache import bring_to_disk
from modelkit.errors import InvalidModel, Problem

VERSION = 1  # of the conversion; another one converts anew
STAGING = ".converting-"
ABANDONED_SECONDS = 24 * 3600.0
WEIGHTS = ".safetensors"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def convert(source: Path, cache: Path, *, sha256: str) -> Path:
    """The converted model of a checked checkpoint, from the cache when it is there.

    sha256 identifies the checkpoint. Several processes may convert at once; one of the results stays. Raises
    InvalidModel, or OSError; then nothing is left behind.
    """
    target = cache / _key(source, sha256)
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(cache)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=cache))
    try:
        write(source, staging)
        staging.chmod(0o755)
        bring_to_disk(staging)
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _clear_abandoned(cache: Path) -> None:
    """Removes what processes that were killed have left."""
    for path in cache.glob(f"{STAGING}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path)


def write(source: Path, target: Path) -> None:
    """Writes the converted model to an empty directory. Raises InvalidModel or OSError."""
    from modelkit.chatglm.weights import convert_weights

    convert_weights(_shards(source), target, convert_outline(source, target))


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
        raise InvalidModel(Problem("base_model", f"{source}: the tokenizer cannot be converted: {error}")) from error
    return config


def _shards(source: Path) -> list[Path]:
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
