"""Low-rank adapters on a frozen model, through PEFT."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from modelkit.loading import CLASSIFIER_HEAD
from trainer_service.recipes.config import Lora
from trainer_service.recipes.errors import CheckpointUnusable
from workerkit.child.errors import InvalidJob

WEIGHTS = "adapter_model.safetensors"
LABELS = "labels.json"
ALL_LINEAR = "all-linear"


def add_adapter(model: Any, lora: Lora, *, base_model: Path, classifies: bool = False) -> Any:
    """The model with an untrained adapter; only the adapter is trained, and the head of a classifier with it.

    Raises InvalidJob when the two do not fit.
    """
    if problems := list(_misfits(model, lora)):
        raise InvalidJob("; ".join(problems), problems)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or ALL_LINEAR,
        bias=lora.bias,  # type: ignore[arg-type]
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
        modules_to_save=[CLASSIFIER_HEAD] if classifies else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names within transformers that PEFT still uses
        adapted: Any = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base_model)
    return adapted


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """The trained weights of an adapter by the names that PEFT files have."""
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return weights


def save_adapter(model: Any, directory: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes adapter_model.safetensors and adapter_config.json; weights are the model's own unless given.

    Of a classifier also labels.json, the classes in the order of their numbers: PEFT wants num_labels to load it.
    """
    tensors = adapter_weights(model) if weights is None else weights
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / WEIGHTS, {"format": "pt"})
    config = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(directory))
    if model.config.problem_type:
        labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
        (directory / LABELS).write_bytes(orjson.dumps(labels, option=orjson.OPT_INDENT_2))


def load_adapter(model: Any, directory: Path) -> None:
    """Takes the adapter's weights from a checkpoint. Raises CheckpointUnusable when they are of another adapter."""
    try:
        weights = load_file(directory / WEIGHTS)
        own = adapter_weights(model)
    except OSError as error:
        raise CheckpointUnusable(f"{directory} has no adapter: {error}") from error
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if shapes != {name: tensor.shape for name, tensor in own.items()}:
        raise CheckpointUnusable(f"{directory} holds an adapter of other shape or on other modules")
    set_peft_model_state_dict(model, weights)


def _misfits(model: Any, lora: Lora) -> Iterator[str]:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            available = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
            yield f"lora.target_modules: the model has no {target!r}; it has {available}"
    width = getattr(model.config, "hidden_size", None)
    if isinstance(width, int) and lora.r > width:
        yield f"lora.r: {lora.r} is more than the width of the model ({width})"
