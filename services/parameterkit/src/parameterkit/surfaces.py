"""The documented surfaces: each has its own defaults and ranges, which are never mixed.

A surface is added by one entry in SURFACES: what it fills in where its caller says nothing (by parameter name; what it
does not name is left to the platform), where its ranges are narrower than the contract's, which parameters it demands.
Reading its requests, the documents and the forms follow from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from parameterkit.limits import Limits
from parameterkit.methods import switched
from parameterkit.parameter import OBJECTIVES, Parameter
from parameterkit.table import PARAMETERS

NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Surface:
    """What one documented system fills in and admits.

    by_objective changes its defaults for "sft", "pretrain" or "classification". evaluates_with are parameters that mean
    evaluations by steps when they are given without an evaluation strategy; derived are defaults that are the value of
    another parameter. hidden are categories that it does not show for a kind of training.
    """

    title_en: str
    title_zh: str
    defaults: Mapping[str, Any]
    ranges: Mapping[str, Limits] = field(default_factory=dict)
    by_objective: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    evaluates_with: tuple[str, ...] = ("eval_file", "eval_ratio")
    derived: Mapping[str, str] = field(default_factory=dict)
    hidden: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _between(low: float, high: float) -> Limits:
    return Limits(at_least=low, at_most=high)


_TRAINING_RANGES = {
    "num_train_epochs": _between(1, 100),
    "per_device_train_batch_size": _between(1, 64),
    "learning_rate": _between(1e-7, 1e-2),
    "gradient_accumulation_steps": _between(1, 64),
}
_LORA_RANGES = {
    "lora_r": _between(1, 256),
    "lora_alpha": _between(1, 512),
    "lora_dropout": _between(0, 0.5),
    "num_train_epochs": _between(1, 50),
    "per_device_train_batch_size": _between(1, 32),
    "learning_rate": _between(1e-6, 1e-2),
    "gradient_accumulation_steps": _between(1, 64),
}
_LORA = {
    "method": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj", "v_proj"],
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-4,
    "gradient_accumulation_steps": 4,
    "eval_strategy": "auto",
    "eval_steps": 100,
    "save_steps": 100,
    "max_seq_length": 512,
}
_STUDIO = {
    "max_samples": 0,
    "eval_ratio": 0.0,
    "shuffle": False,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "max_seq_length": 512,
    "learning_rate": 2e-4,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 2,
    "max_steps": -1,
    "weight_decay": 0.01,
    "warmup_ratio": 0.1,
    "warmup_steps": 0,
    "lr_scheduler_num_cycles": 2,
    "max_grad_norm": 1.0,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 100,
    "save_interval_minutes": 30,
    "eval_strategy": "no",
    "eval_steps": 100,
    "early_stopping_patience": 0,
    "early_stopping_threshold": 0.005,
    "method": "lora",
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj"],
    "merge_after_training": False,
    "fp16": True,
    "bf16": False,
    "tf32": False,
    "gradient_checkpointing": True,
    "dataloader_num_workers": 1,
    "dataloader_pin_memory": True,
    "log_level": "info",
    "logging_steps": 10,
    "seed": 42,
}

SURFACES: Mapping[str, Surface] = MappingProxyType(
    {
        NATIVE: Surface(
            "Platform",
            "平台",
            {row.name: row.default for row in PARAMETERS if row.default is not None},
            evaluates_with=("eval_steps",),
        ),
        "training": Surface(
            "/api/training",
            "/api/training",
            {
                "method": "lora",
                "num_train_epochs": 10,
                "per_device_train_batch_size": 8,
                "learning_rate": 5e-5,
                "warmup_steps": 100,
                "weight_decay": 0.01,
                "gradient_accumulation_steps": 1,
                "eval_strategy": "auto",
                "eval_steps": 500,
                "save_steps": 500,
                "fp16": True,
            },
            _TRAINING_RANGES,
        ),
        "llm_finetuning": Surface("/api/llm-finetuning (LoRA)", "/api/llm-finetuning (LoRA)", _LORA, _LORA_RANGES),
        "llm_finetuning_qlora": Surface(
            "/api/llm-finetuning (QLoRA)",
            "/api/llm-finetuning (QLoRA)",
            {
                **_LORA,
                "method": "qlora",
                "lora_r": 64,
                "lora_dropout": 0.1,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_compute_dtype": "float16",
                "bnb_4bit_use_double_quant": False,
            },
            _LORA_RANGES,
        ),
        "finetuning": Surface(
            "/finetuning",
            "/finetuning",
            {
                "num_train_epochs": 3,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 1,
                "learning_rate": 2e-4,
                "warmup_steps": 100,
                "logging_steps": 10,
                "save_steps": 500,
                "eval_strategy": "auto",
                "eval_steps": 500,
                "max_seq_length": 512,
                # The document recommends LoRA. No modules are named, because their names differ between the families
                # that it supports (q_proj in LLaMA and Qwen, query_key_value in ChatGLM): every linear layer gets one.
                "method": "lora",
                "lora_r": 8,
                "lora_alpha": 16,
                "lora_dropout": 0.05,
            },
            {"processes": _between(1, 64)},
            evaluates_with=("eval_steps",),
        ),
        "workflow": Surface(
            "Workflow",
            "工作流",
            {
                "method": "full",
                "lora_r": 8,
                "lora_alpha": 16,
                "lora_dropout": 0.05,
                "lora_bias": "none",
                "bnb_4bit_use_double_quant": True,
                "learning_rate": 5e-5,
                "per_device_train_batch_size": 8,
                "num_train_epochs": 3,
                "optim": "adamw_torch",
                "lr_scheduler_type": "linear",
                "weight_decay": 0.01,
                "warmup_steps": 100,
                "max_grad_norm": 1.0,
                "gradient_accumulation_steps": 1,
                "eval_steps": 500,
                "logging_steps": 10,
                "gradient_checkpointing": False,
                "fp16": False,
                "bf16": False,
                "max_seq_length": 512,
                "packing": False,
            },
            {"quantization": Limits(choices=("none", "fp16", "bf16", "int8", "int4", "fp4", "nf4"))},
            derived={"save_steps": "eval_steps"},
        ),
        "studio": Surface(
            "Studio",
            "训练工作室",
            _STUDIO,
            {
                "max_samples": _between(0, 100_000),
                "per_device_train_batch_size": _between(1, 128),
                "gradient_accumulation_steps": _between(1, 256),
                "max_seq_length": _between(128, 8192),
                "learning_rate": _between(1e-6, 1e-1),
                "num_train_epochs": _between(1, 100),
                "lr_scheduler_num_cycles": _between(1, 10),
                "save_interval_minutes": _between(1, 1440),
                "lora_r": _between(1, 512),
                "dataloader_num_workers": _between(0, 16),
                "seed": _between(0, 999_999),
            },
            by_objective={"pretrain": {"method": "full", "objective": "pretraining"}},
            required=("output_dir",),
            hidden={"pretrain": ("lora", "quantization")},
            evaluates_with=(),
        ),
    }
)


def defaults(surface: str = NATIVE, objective: str = "") -> Mapping[str, Any]:
    """What a surface fills in itself, by parameter name, in plain values; objective is a choice of `objective`.

    The platform fills in what is not named. Raises KeyError for a surface that does not exist.
    """
    found = SURFACES[surface]
    return MappingProxyType({**found.defaults, **found.by_objective.get(OBJECTIVES.get(objective, objective), {})})


def effective_defaults(surface: str = NATIVE, objective: str = "") -> Mapping[str, Any]:
    """What holds in the end where a caller of a surface says nothing: its own defaults, then the platform's.

    Switches say what the others mean.
    """
    values = {**defaults(NATIVE), **defaults(surface, objective)}
    return MappingProxyType({**values, **switched(values)})


@cache
def ranges(surface: str = NATIVE) -> Mapping[str, Limits]:
    """The limits of every parameter on a surface, by name: the contract's, narrowed by the surface's own."""
    own = SURFACES[surface].ranges
    return MappingProxyType(
        {row.name: row.limits.within(own[row.name]) if row.name in own else row.limits for row in PARAMETERS}
    )


def required(surface: str = NATIVE) -> frozenset[str]:
    """Names of the parameters that a surface demands."""
    return frozenset(row.name for row in PARAMETERS if row.required) | frozenset(SURFACES[surface].required)


def shown(surface: str = NATIVE, objective: str = "") -> tuple[Parameter, ...]:
    """The parameters that a surface shows for a kind of training ("sft", "pretrain", ...; empty is any)."""
    hidden = SURFACES[surface].hidden.get(objective, ())
    return tuple(row for row in PARAMETERS if row.concerns(objective) and row.category not in hidden)
