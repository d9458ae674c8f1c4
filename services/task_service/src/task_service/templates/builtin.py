"""The platform's own templates: where a form of each kind of training starts, and the presets of the documents."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from parameterkit import BY_NAME, defaults, rules
from parameterkit.values import assign
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1 import template_service_pb2 as pb

PREFIX = "builtin-"
OBJECTIVES = {"sft": "supervised", "pretrain": "pretraining", "classification": "classification"}


@dataclass(frozen=True, slots=True)
class Builtin:
    """A template as data: parameters by their names in the parameter table, over a surface's defaults if it has one.

    base holds what that table does not know.
    """

    key: str
    type: str
    name: str
    name_zh: str
    description: str
    parameters: Mapping[str, Any]
    surface: str = ""
    base: spec_pb2.FinetuneSpec = field(default_factory=spec_pb2.FinetuneSpec)
    default_of_type: bool = False

    def message(self) -> pb.Template:
        """The template as callers see it."""
        return pb.Template(
            id=f"{PREFIX}{self.key}",
            name=self.name,
            version=1,
            spec=self._spec(),
            builtin=True,
            type=self.type,
            description=self.description,
            name_zh=self.name_zh,
            default_of_type=self.default_of_type,
        )

    def _spec(self) -> spec_pb2.FinetuneSpec:
        spec = spec_pb2.FinetuneSpec()
        spec.CopyFrom(self.base)
        values = {**(defaults(self.surface) if self.surface else {}), **self.parameters}
        if self.type in OBJECTIVES:
            values["objective"] = OBJECTIVES[self.type]
        for name, value in values.items():
            # Half waves of "cosine" would end at the peak: templates keep to one descent.
            if name != "lr_scheduler_num_cycles" and rules.applies(name, values.get("method", "lora"), ""):
                assign(spec, BY_NAME[name], value)
        return spec


def _preset(
    rate: float, batch: int, epochs: int, max_steps: int, warmup: int, logging: int, save: int
) -> dict[str, float | int]:
    """The numbers that the presets of fine-tuning tasks consist of."""
    return {
        "learning_rate": rate,
        "per_device_train_batch_size": batch,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
        "warmup_steps": warmup,
        "logging_steps": logging,
        "save_steps": save,
    }


def _low_rank(r: int, alpha: int, batch: int, accumulation: int, rate: float) -> dict[str, float | int]:
    """What the training guide's presets for models of a size consist of."""
    return {
        "lora_r": r,
        "lora_alpha": alpha,
        "lora_dropout": 0.05,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": rate,
        "num_train_epochs": 3,
    }


BUILTIN = (
    Builtin(
        "sft",
        "sft",
        "Supervised fine-tuning",
        "监督微调（SFT）",
        "Dialogues or instructions with a low-rank adapter; where a form starts.",
        {"method": "lora"},
        surface="studio",
        default_of_type=True,
    ),
    Builtin(
        "pretrain",
        "pretrain",
        "Continued pretraining",
        "预训练",
        "Plain text, every weight is trained, without LoRA.",
        {"method": "full"},
        surface="studio",
        default_of_type=True,
    ),
    Builtin(
        "classification",
        "classification",
        "Text classification",
        "文本分类",
        "Texts with classes and a low-rank adapter.",
        {"method": "lora", "learning_rate": 1e-4},
        surface="workflow",
        default_of_type=True,
    ),
    Builtin(
        "quick-test",
        "sft",
        "Quick test",
        "快速测试",
        "A hundred steps, to see whether model and data fit together.",
        _preset(1e-4, 16, 1, 100, 10, 10, 50),
    ),
    Builtin(
        "standard",
        "sft",
        "Standard",
        "标准微调",
        "Three passes over the data.",
        _preset(2e-4, 32, 3, -1, 100, 50, 500),
    ),
    Builtin(
        "full-finetune",
        "sft",
        "Full fine-tuning",
        "全量微调",
        "Ten passes in which every weight is trained.",
        {"method": "full", **_preset(5e-5, 64, 10, -1, 500, 100, 1000)},
    ),
    Builtin(
        "lora-7b",
        "sft",
        "LoRA, 7B models",
        "LoRA 微调（7B 模型）",
        "For models of 7 billion parameters on a GPU with 16 GB or more.",
        {"method": "lora", **_low_rank(8, 16, 4, 4, 2e-4)},
        surface="llm_finetuning",
    ),
    Builtin(
        "lora-13b",
        "sft",
        "LoRA, 13B models",
        "LoRA 微调（13B 模型）",
        "For models of 13 billion parameters on a GPU with 32 GB or more.",
        {"method": "lora", **_low_rank(16, 32, 2, 8, 1e-4)},
        surface="llm_finetuning",
    ),
    Builtin(
        "qlora",
        "sft",
        "QLoRA, large models",
        "QLoRA 微调（大模型）",
        "A low-rank adapter on weights in 4 bit, for little video memory or large models.",
        {
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
        surface="workflow",
    ),
    Builtin(
        "image-classifier",
        "image_classifier",
        "Image classifier",
        "图像分类",
        "ResNet-50 on folders named after their classes.",
        {"num_train_epochs": 15, "per_device_train_batch_size": 16, "learning_rate": 1e-4},
        base=spec_pb2.FinetuneSpec(
            base_model="resnet50", image_classifier=spec_pb2.ImageClassifierParameters(image_size=224)
        ),
        default_of_type=True,
    ),
    Builtin(
        "object-detector",
        "object_detector",
        "Object detector",
        "目标检测",
        "YOLOv8n on images with labels.",
        {"num_train_epochs": 100, "per_device_train_batch_size": 16},
        base=spec_pb2.FinetuneSpec(
            base_model="yolov8n", object_detector=spec_pb2.ObjectDetectorParameters(image_size=640)
        ),
        default_of_type=True,
    ),
    Builtin(
        "text-to-image",
        "text_to_image",
        "Text-to-image LoRA",
        "文生图 LoRA",
        "A low-rank adapter for Stable Diffusion 1.5.",
        {},
        base=spec_pb2.FinetuneSpec(
            base_model="sd-v1-5",
            text_to_image=spec_pb2.TextToImageParameters(
                resolution=512,
                lora=spec_pb2.LoraParameters(r=4, alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]),
            ),
        ),
        default_of_type=True,
    ),
)


@cache
def builtin_templates() -> Mapping[str, pb.Template]:
    """Every template of the platform by its id, in the order in which they are listed."""
    return {template.id: template for template in (row.message() for row in BUILTIN)}
