"""Each surface fills in its own defaults, within its own ranges (F12, C16, C19, C27-C31, M27-M34)."""

from typing import Any

import pytest

from parameterkit import BY_NAME, PARAMETERS, SURFACES, defaults, effective_defaults, ranges, required, shown
from parameterkit.values import parse

DOCUMENTED: dict[str, dict[str, Any]] = {
    "training": {
        "epochs": 10,
        "batch_size": 8,
        "learning_rate": 5e-5,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "gradient_accumulation_steps": 1,
        "eval_steps": 500,
        "save_steps": 500,
        "fp16": True,
    },
    "llm_finetuning": {
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 2e-4,
        "gradient_accumulation_steps": 4,
        "eval_steps": 100,
        "save_steps": 100,
        "max_length": 512,
    },
    "llm_finetuning_qlora": {
        "lora_r": 64,
        "lora_dropout": 0.1,
        "bnb_4bit_compute_dtype": "float16",
        "bnb_4bit_quant_type": "nf4",
        "use_nested_quant": False,
    },
    "finetuning": {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-4,
        "warmup_steps": 100,
        "logging_steps": 10,
        "save_steps": 500,
        "max_seq_length": 512,
    },
    "workflow": {
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_bias": "none",
        "bnb_4bit_use_double_quant": True,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 8,
        "num_epochs": 3,
        "optimizer": "adamw_torch",
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
    "studio": {
        "max_samples": 0,
        "eval_ratio": 0,
        "batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_seq_length": 512,
        "learning_rate": 2e-4,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 2,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
        "max_grad_norm": 1.0,
        "save_strategy": "steps",
        "save_steps": 100,
        "eval_strategy": "no",
        "eval_steps": 100,
        "save_total_limit": 100,
        "early_stopping_patience": 0,
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj", "v_proj"],
        "merge_after_training": False,
        "fp16": True,
        "bf16": False,
        "tf32": False,
        "gradient_checkpointing": True,
        "log_level": "info",
        "logging_steps": 10,
        "seed": 42,
        "shuffle": False,
        "dataloader_num_workers": 1,
        "dataloader_pin_memory": True,
        "warmup_steps": 0,
        "max_steps": -1,
        "lr_scheduler_num_cycles": 2,
        "save_interval_minutes": 30,
        "early_stopping_threshold": 0.005,
    },
}
RANGES = {
    "training": {"epochs": (1, 100), "batch_size": (1, 64), "learning_rate": (1e-7, 1e-2)},
    "llm_finetuning": {"lora_r": (1, 256), "lora_alpha": (1, 512), "lora_dropout": (0, 0.5), "epochs": (1, 50)},
    "studio": {
        "batch_size": (1, 128),
        "gradient_accumulation_steps": (1, 256),
        "max_seq_length": (128, 8192),
        "learning_rate": (1e-6, 1e-1),
        "epochs": (1, 100),
        "lora_r": (1, 512),
        "seed": (0, 999_999),
        "dataloader_num_workers": (0, 16),
        "save_interval_minutes": (1, 1440),
        "early_stopping_patience": (0, 100),
        "max_samples": (0, 100_000),
    },
}


@pytest.mark.parametrize("surface", DOCUMENTED)
def test_defaults_of_the_documents(surface: str) -> None:
    own = defaults(surface)
    for name, value in DOCUMENTED[surface].items():
        assert own[BY_NAME[name].name] == value, name


@pytest.mark.parametrize("surface", SURFACES)
def test_a_surfaces_defaults_lie_within_its_own_ranges(surface: str) -> None:
    limits = ranges(surface)
    for name, value in defaults(surface).items():
        assert not BY_NAME[name].switch
        assert parse(BY_NAME[name], value, limits[name]) == value


@pytest.mark.parametrize("surface", RANGES)
def test_ranges_of_the_documents(surface: str) -> None:
    limits = ranges(surface)
    for name, (low, high) in RANGES[surface].items():
        bounds = limits[BY_NAME[name].name]
        assert bounds.admit(low), name
        assert bounds.admit(high), name
        assert not bounds.admit(low - 1e-9), name
        assert not bounds.admit(high + 1e-9), name


def test_a_surface_is_nowhere_wider_than_the_contract() -> None:
    for surface in SURFACES:
        for name, bounds in ranges(surface).items():
            contract = BY_NAME[name].limits
            for edge in (bounds.at_least, bounds.at_most):
                assert edge is None or contract.admit(edge), (surface, name)


def test_defaults_are_never_mixed() -> None:
    assert defaults("finetuning")["learning_rate"] != defaults("training")["learning_rate"]
    assert "weight_decay" not in defaults("finetuning")
    assert effective_defaults("finetuning")["weight_decay"] == defaults("native")["weight_decay"]
    assert effective_defaults("studio")["lora_alpha"] == 16


def test_m30_switches_show_what_a_form_starts_with() -> None:
    studio = effective_defaults("studio", "sft")
    assert studio["use_lora"]
    assert not studio["use_qlora"]
    assert not studio["use_8bit_optimizer"]
    assert studio["memory_optimization"]
    qlora = effective_defaults("llm_finetuning_qlora")
    assert (qlora["use_qlora"], qlora["use_4bit"], qlora["use_8bit"]) == (True, True, False)
    assert (qlora["quantization"], qlora["peft_adapter"]) == ("nf4", "lora")
    assert not effective_defaults("studio", "pretrain")["use_lora"]
    for surface in SURFACES:
        assert not {row.name for row in PARAMETERS if row.switch} - set(effective_defaults(surface))


def test_m5_m34_pretraining_in_the_studio_has_no_adapter_and_hides_its_parameters() -> None:
    assert defaults("studio", "supervised")["method"] == "lora", "M5"
    for word in ("pretraining", "pretrain"):
        assert defaults("studio", word)["method"] == "full"
    assert not {row.name for row in shown("studio", "pretrain")} & {"use_lora", "lora_r", "method", "use_4bit"}
    assert "lora_r" in {row.name for row in shown("studio", "sft")}
    assert "lora_r" in {row.name for row in shown("native", "pretrain")}


def test_m27_what_the_studio_demands() -> None:
    assert required("studio") == {"train_file", "base_model", "output_dir"}
    assert required("native") == {"train_file", "base_model"}
