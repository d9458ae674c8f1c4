"""Sets of parameters that the documents recommend, by name: what forms offer and templates are made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parameterkit.reading import read
from tunesmith.task.v1 import spec_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Parameters for one purpose. surface is the one whose defaults complete it, values what it sets beyond them."""

    name: str
    surface: str
    objective: str = "sft"
    label_en: str
    label_zh: str
    description_en: str
    description_zh: str
    values: Mapping[str, Any]

    def spec(self) -> spec_pb2.FinetuneSpec:
        """Its parameters, completed by its surface's defaults; without base model, dataset and directories."""
        reading = read(self.values, self.surface)
        if reading.problems:
            raise ValueError(f"preset {self.name}: {reading.problems}")
        return reading.spec


def _of_tasks(rate: float, batch: int, epochs: int, steps: int, warmup: int, logging: int, save: int) -> dict[str, Any]:
    return {
        "learning_rate": rate,
        "per_device_train_batch_size": batch,
        "num_train_epochs": epochs,
        "max_steps": steps,
        "warmup_steps": warmup,
        "logging_steps": logging,
        "save_steps": save,
    }


PRESETS: tuple[Preset, ...] = (
    Preset(
        name="sft",
        surface="studio",
        label_en="Supervised fine-tuning",
        label_zh="监督微调（SFT）",
        description_en="Default of supervised fine-tuning: LoRA on dialogues.",
        description_zh="SFT 默认模板：对话数据上的 LoRA 微调",
        values={"objective": "supervised"},
    ),
    Preset(
        name="pretrain",
        surface="studio",
        objective="pretrain",
        label_en="Pretraining",
        label_zh="预训练",
        description_en="Default of pretraining: every weight, on plain text.",
        description_zh="预训练默认模板：在纯文本上训练全部权重",
        values={"objective": "pretraining"},
    ),
    Preset(
        name="quick_test",
        surface="finetuning",
        label_en="Quick test",
        label_zh="快速测试",
        description_en="100 steps to see that everything works.",
        description_zh="训练 100 步，验证流程可用",
        values=_of_tasks(1e-4, 16, 1, 100, 10, 10, 50),
    ),
    Preset(
        name="standard",
        surface="finetuning",
        label_en="Standard",
        label_zh="标准训练",
        description_en="Three epochs of LoRA.",
        description_zh="LoRA 训练 3 轮",
        values=_of_tasks(2e-4, 32, 3, -1, 100, 50, 500),
    ),
    Preset(
        name="full_finetune",
        surface="finetuning",
        label_en="Full fine-tuning",
        label_zh="全量微调",
        description_en="Ten epochs of every weight.",
        description_zh="全部权重训练 10 轮",
        values={"method": "full", **_of_tasks(5e-5, 64, 10, -1, 500, 100, 1000)},
    ),
    Preset(
        name="lora_7b",
        surface="llm_finetuning",
        label_en="LoRA, 7B models",
        label_zh="LoRA，7B 模型",
        description_en="For models such as LLaMA 2 7B and Mistral 7B.",
        description_zh="适用于 LLaMA 2 7B、Mistral 7B 等模型",
        values={
            "lora_r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4,
            "num_train_epochs": 3,
        },
    ),
    Preset(
        name="lora_13b",
        surface="llm_finetuning",
        label_en="LoRA, 13B models",
        label_zh="LoRA，13B 模型",
        description_en="For models of about 13 billion parameters.",
        description_zh="适用于 130 亿参数左右的模型",
        values={
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "learning_rate": 1e-4,
            "num_train_epochs": 3,
        },
    ),
    Preset(
        name="qlora",
        surface="workflow",
        label_en="QLoRA",
        label_zh="QLoRA",
        description_en="4-bit weights for large models or small GPUs.",
        description_zh="4 位量化，适用于大模型或显存较小的显卡",
        values={
            "method": "qlora",
            "lora_r": 64,
            "lora_alpha": 16,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_use_double_quant": True,
            "learning_rate": 2e-4,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": True,
            "bf16": True,
        },
    ),
)
