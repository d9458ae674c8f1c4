"""Checkpoints and finished models: written under another name, brought to disk, then named in one step."""

import dataclasses
import errno
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import GenerationConfig

from modelkit.disk import sync
from modelkit.identity import ORIGIN_FILE
from modelkit.inspection import read_json
from trainer_service.recipes.adapters import adapter_weights, save_adapter
from trainer_service.recipes.checkpoint_files import STATE
from trainer_service.recipes.config import Training
from trainer_service.recipes.errors import CheckpointUnusable
from trainer_service.recipes.sharding import plain_model

ONE_FILE = "1TB"
GENERATION = "generation_config.json"
READABLE = 0o644
NO_SPACE = 1 << 20


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a model: the adapter's weights, or all."""
    if hasattr(model, "peft_config"):
        return adapter_weights(model)
    weights: dict[str, torch.Tensor] = model.state_dict()
    return weights


def save_weights(model: Any, directory: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Writes the adapter, or the whole model with config.json, in safetensors; its own weights unless given.

    The settings for generation, which name what ends a reply, come with both.
    """
    settings = getattr(model, "generation_config", None)
    if hasattr(model, "peft_config"):
        save_adapter(model, directory, weights)
    else:
        with _without_settings(model):
            model.save_pretrained(directory, state_dict=weights, max_shard_size=ONE_FILE)
    if settings is not None:
        (directory / GENERATION).write_text(settings.to_json_string(), encoding="utf-8")


@contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """Within, a model has settings for generation that transformers finds no fault with: it reads those of many a
    model, LLaMA 2 for example, and refuses to write them."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        yield
        return
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Writes the tokenizer with its chat template, and special_tokens_map.json, which older programs look for."""
    tokenizer.save_pretrained(directory)
    path = directory / "special_tokens_map.json"
    if not path.exists():
        path.write_bytes(orjson.dumps(tokenizer.special_tokens_map, option=orjson.OPT_INDENT_2, default=str))


@dataclasses.dataclass(frozen=True, slots=True)
class Beside:
    """What lies beside a finished model: TensorBoard files as runs/, and what the model was made from."""

    runs: Path | None = None
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


NOTHING = Beside()


def save_final(
    model: Any,
    tokenizer: Any,
    directory: Path,
    *,
    stored: torch.dtype,
    beside: Beside = NOTHING,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes the finished model, which transformers (or PEFT, for an adapter) loads as it is. Raises OSError.

    A whole model is written in the format its base model was stored in; afterwards it has that in memory too. weights
    are those of a model that is spread over processes.
    """

    def fill(staging: Path) -> None:
        save_tokenizer(tokenizer, staging)
        if hasattr(model, "peft_config"):
            save_weights(model, staging, weights)
        else:
            whole_model = model if weights is None else plain_model(model, weights)
            save_weights(whole_model.to(stored), staging)
        if beside.runs and beside.runs.is_dir():
            shutil.copytree(beside.runs, staging / "runs")
        if beside.origin:
            (staging / ORIGIN_FILE).write_bytes(orjson.dumps(beside.origin, option=orjson.OPT_INDENT_2))

    write_directory(directory, fill)


class CheckpointWriter:
    """Writes checkpoints beneath a directory. The tokenizer is saved once and copied into each."""

    def __init__(self, directory: Path, tokenizer: Any, training: Training) -> None:
        self.directory = directory
        self._tokenizer = tokenizer
        self._training = training
        self._tokenizer_files = directory / ".tokenizer"

    def write(
        self,
        step: int,
        model: Any,
        weights: dict[str, torch.Tensor],
        states: dict[str, Any],
        state: dict[str, Any],
    ) -> Path:
        """Writes checkpoint-<step>: the weights, each of states as <name>.pt, and state, which is plain JSON.

        Raises OSError; then nothing is left under the checkpoint's name.
        """

        def fill(staging: Path) -> None:
            if not self._tokenizer_files.is_dir():
                self._tokenizer_files.mkdir(parents=True)
                save_tokenizer(self._tokenizer, self._tokenizer_files)
            shutil.copytree(self._tokenizer_files, staging, dirs_exist_ok=True)
            save_weights(model, staging, dict(weights))
            for name, content in states.items():
                save_tensors(content, staging / f"{name}.pt")
            torch.save(dataclasses.asdict(self._training), staging / "training_args.bin")
            (staging / STATE).write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2))

        target = self.directory / f"checkpoint-{step}"
        shutil.rmtree(target, ignore_errors=True)
        write_directory(target, fill)
        return target


def write_directory(target: Path, fill: Callable[[Path], None]) -> None:
    """Creates a directory whole or not at all, and on disk for certain. Raises OSError."""
    staging = target.parent / f".{target.name}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        fill(staging)
        for parent, _, names in os.walk(staging):
            for name in names:
                Path(parent, name).chmod(READABLE)  # safetensors are written for their owner alone
            for name in [*names, "."]:
                sync(Path(parent, name))
        staging.rename(target)
        sync(target.parent)
    except BaseException as error:
        full = says_disk_full(error, staging)
        shutil.rmtree(staging, ignore_errors=True)
        if full and not isinstance(error, OSError):
            raise OSError(errno.ENOSPC, "no space left on the disk", str(target)) from error
        raise


def says_disk_full(error: BaseException, directory: Path) -> bool:
    """Whether a write failed for want of space; PyTorch and safetensors say so in words of their own, or not at all."""
    if any(words in str(error) for words in ("No space left", "Disk quota exceeded")):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(directory).free < NO_SPACE


def read_state(checkpoint: Path) -> dict[str, Any]:
    """trainer_state.json of a checkpoint. Raises CheckpointUnusable."""
    try:
        return read_json(checkpoint / STATE)
    except (OSError, ValueError) as error:
        raise CheckpointUnusable(f"{checkpoint} cannot be used: {error}") from error


def save_tensors(content: Any, path: Path) -> None:
    """Writes tensors and plain values. Raises OSError or RuntimeError."""
    torch.save(content, path)
    if not zipfile.is_zipfile(path):  # PyTorch does not notice every write that fails
        raise OSError(errno.EIO, "the file was not written whole", str(path))


def load_tensors(path: Path) -> Any:
    """A .pt file that holds tensors and plain values alone; pickles of anything else are refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointUnusable(f"{path} cannot be used: {error}") from error
