"""Small models with LoRA adapters, made by PEFT itself, whose weights do something."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from modelkit.loading import CLASSIFIER_HEAD, load_model, load_tokenizer

IDS = torch.arange(3, 40)[None]
LINEAR = "all-linear"


def adapt(base: Path, target: Path, *, labels: tuple[str, ...] = (), seed: int = 1, **settings: Any) -> Any:
    """Writes an adapter to target as PEFT saves it; the adapted model."""
    torch.manual_seed(seed)
    whole: Any = load_model(base, dtype=torch.float32, labels=labels or None)
    kind = {"task_type": "SEQ_CLS", "modules_to_save": [CLASSIFIER_HEAD]} if labels else {"task_type": "CAUSAL_LM"}
    config = LoraConfig(**{"r": 4, "lora_alpha": 10, "target_modules": LINEAR, **kind, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(whole, config)
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1 if "lora_" in name else 0.5)
        model.save_pretrained(target)
    return model.eval()


def with_peft(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights that PEFT's own merge gives."""
    merged: Any = PeftModel.from_pretrained(load_model(base, dtype=dtype), adapter).merge_and_unload()
    weights: dict[str, torch.Tensor] = merged.state_dict()
    return weights


def stored_as(source: Path, target: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A model in another type, or spread over several files."""
    model: Any = load_model(source, dtype=dtype)
    model.save_pretrained(target, **options)
    load_tokenizer(source).save_pretrained(target)
    return target
