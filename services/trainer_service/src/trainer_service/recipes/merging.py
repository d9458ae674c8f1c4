"""Adapters merged into their base model, tensor by tensor, so that no more than one file of it is in memory.

Sums are taken in float32 and rounded once to the format that the base model is stored in. The base is read as it is
stored, so an adapter that was trained on quantized weights is merged into the exact ones.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modelkit.inspection import INDEX, SINGLE, read_json, without_unsafe
from trainer_service.recipes.adapters import adapter_weights
from trainer_service.recipes.config import Job
from trainer_service.recipes.saving import save_tokenizer, write_directory
from workerkit.child.errors import RecipeError
from workerkit.child.events import WARNING, EventWriter

MERGED = "merged"
PREFIX = "base_model.model."
CLASSIFIER_KEYS = ("id2label", "label2id", "problem_type", "pad_token_id")
OUTPUT_LAYER, EMBEDDINGS = "lm_head.weight", "embed_tokens.weight"


class MergeFailed(RecipeError):
    """The adapter does not fit the files of its base model."""

    reason = "MERGE_FAILED"


def merge_if_asked(job: Job, model: Any, tokenizer: Any, events: EventWriter) -> None:
    """Writes the merged model to `<output>/merged` when the job has an adapter and asks for it.

    A merge that fails is told in the log and costs nobody the adapter, which is whole on disk already.
    """
    if not job.finetune.language_model.merge_after_training:
        return
    if not hasattr(model, "peft_config"):
        events.log("merge_after_training has no effect: a full training has no adapter to merge")
        return
    events.log(f"merging the adapter into {job.model_dir.name}")
    changes = Changes.of(model)
    try:
        write_directory(job.output_dir / MERGED, lambda staging: merge(job.model_dir, changes, tokenizer, staging))
    except (MergeFailed, OSError, SafetensorError) as error:
        events.log(f"the adapter is saved, but it could not be merged: {error}", level=WARNING)


class Changes:
    """What an adapter does to its base model: tensors by the base's own names, and entries of config.json.

    products are pairs of matrices whose product, times scale, is added; replacements take a tensor's place.
    """

    def __init__(
        self,
        products: dict[str, tuple[torch.Tensor, torch.Tensor]],
        replacements: dict[str, torch.Tensor],
        *,
        scale: float,
        config: dict[str, Any],
    ) -> None:
        self.products = products
        self.replacements = replacements
        self.scale = scale
        self.config = config

    @classmethod
    def of(cls, model: Any) -> "Changes":
        """Those of a model with a LoRA adapter."""
        weights = {name.removeprefix(PREFIX): tensor.cpu() for name, tensor in adapter_weights(model).items()}
        products, replacements = {}, {}
        for name, tensor in weights.items():
            module = name.partition(".lora_")[0]
            if ".lora_A." in name:
                left, right = weights[name.replace(".lora_A.", ".lora_B.")], tensor
                if getattr(model.get_submodule(PREFIX + module), "fan_in_fan_out", False):
                    left, right = right.T, left.T
                products[f"{module}.weight"] = (left, right)
            elif ".lora_embedding_A" in name:  # (rank, tokens) and (width, rank)
                products[f"{module}.weight"] = (tensor.T, weights[name.replace("_A", "_B")].T)
            elif ".lora_" not in name:
                replacements[name.replace(".base_layer.", ".")] = tensor
        lora, whole = model.peft_config["default"], model.get_base_model()
        config = {}
        if whole.config.problem_type:
            config = {name: getattr(whole.config, name) for name in CLASSIFIER_KEYS}
            config["architectures"] = [type(whole).__name__]
        return cls(products, replacements, scale=lora.lora_alpha / lora.r, config=config)

    @property
    def names(self) -> set[str]:
        """The tensors that change."""
        return {*self.products, *self.replacements}

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the base model as it is after the merge, in the same format."""
        if name in self.replacements:
            return self.replacements[name].to(tensor.dtype)
        if name not in self.products:
            return tensor
        left, right = self.products[name]
        update = (left.float() @ right.float()) * self.scale
        return update.add_(tensor).to(tensor.dtype)


def merge(base: Path, changes: Changes, tokenizer: Any, target: Path) -> None:
    """Writes the base model with changes to a directory, file by file. Raises MergeFailed or OSError."""
    shards = _shards(base)
    stored = {name: shard for shard, names in shards.items() for name in names}
    added = _added(base, changes, stored)
    index: dict[str, str] = {}
    size = 0
    for number, (shard, names) in enumerate(shards.items()):
        with safe_open(base / shard, framework="pt") as file:
            tensors = {name: changes.apply(name, file.get_tensor(name)) for name in names}
        if number == 0:
            tensors |= added
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / shard, {"format": "pt"})
        index |= dict.fromkeys(tensors, shard)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if (base / INDEX).is_file():
        content = {"metadata": {"total_size": size}, "weight_map": index}
        (target / INDEX).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    _write_config(base, changes, target, untied=OUTPUT_LAYER in added)
    save_tokenizer(tokenizer, target)


def _shards(base: Path) -> dict[str, list[str]]:
    if not (base / INDEX).is_file():
        with safe_open(base / SINGLE, framework="pt") as file:
            return {SINGLE: list(file.keys())}
    shards: dict[str, list[str]] = {}
    for name, shard in read_json(base / INDEX)["weight_map"].items():
        if Path(shard).name != shard:
            raise MergeFailed(f"{INDEX} names {shard!r}, which is not a file beside it")
        shards.setdefault(shard, []).append(name)
    return shards


def _added(base: Path, changes: Changes, stored: dict[str, str]) -> dict[str, torch.Tensor]:
    """Tensors that the base model's files do not have: a classifier's head, or an output layer that was tied."""
    added = {}
    for name in sorted(changes.names - stored.keys()):
        if name in changes.replacements:
            added[name] = changes.replacements[name]
        elif name == OUTPUT_LAYER and (source := next(_embeddings(stored), None)):
            with safe_open(base / stored[source], framework="pt") as file:
                added[name] = changes.apply(name, file.get_tensor(source))
        else:
            raise MergeFailed(f"the files of the base model have no {name}, which the adapter changes")
    return added


def _embeddings(stored: dict[str, str]) -> Iterator[str]:
    return (name for name in stored if name.endswith(EMBEDDINGS))


def _write_config(base: Path, changes: Changes, target: Path, *, untied: bool) -> None:
    config, _ = without_unsafe(read_json(base / "config.json"))
    config |= changes.config
    if untied:
        config["tie_word_embeddings"] = False
    (target / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", target / "generation_config.json")
