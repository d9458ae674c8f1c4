"""Quantized frozen weights for QLoRA (arXiv:2305.14314), through bitsandbytes, on GPUs and CPUs."""

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from modelkit.loading import CLASSIFIER_HEAD
from trainer_service.recipes.config import Quantization

# bitsandbytes has two codes of 4 bits and no linear one. What the documents call int4 is 4 bits a weight, and of the
# two codes NF4 loses the least.
CODES = {"nf4": "nf4", "fp4": "fp4", "int4": "nf4"}
KEPT = ("lm_head", "embed_out", CLASSIFIER_HEAD)


def configure(quantization: Quantization, device: torch.device) -> tuple[BitsAndBytesConfig, list[str]]:
    """What transformers is to quantize with while it loads, and notes on what differs from the wish."""
    notes: list[str] = []
    if quantization.type == "int8":
        if quantization.double_quant:
            notes.append("double quantization is for 4 bits; it has no effect on int8")
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(KEPT)), notes
    compute, note = _compute_dtype(quantization.compute_dtype, device)
    notes += note
    if quantization.type == "int4":
        notes.append("int4 is stored as NF4, the more exact of the two 4-bit codes that bitsandbytes has")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=CODES[quantization.type],
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=quantization.double_quant,
        llm_int8_skip_modules=list(KEPT),
    )
    return config, notes


def prepare_for_training(model: nn.Module) -> None:
    """Freezes a quantized model and brings what is not quantized and not a matrix (norms, biases) to float32.

    Embeddings and the output layer keep the format that they were loaded in. A layer of bitsandbytes lays its weights
    out anew when it first computes without gradients on a CPU, and has no gradient from then on: it is kept from that.
    """
    for parameter in model.parameters():
        parameter.requires_grad = False
        if parameter.ndim < 2 and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantized(parameter: nn.Parameter) -> bool:
    """Whether a weight is stored in a code of bitsandbytes."""
    return type(parameter).__name__ in ("Params4bit", "Int8Params")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many weights are trained, and how many there are; one of 4 bits counts like any other."""
    trained = total = 0
    for parameter in model.parameters():
        state: Any = getattr(parameter, "quant_state", None)
        size = parameter.numel() if state is None else state.shape.numel()
        total += size
        trained += size if parameter.requires_grad else 0
    return trained, total


def _compute_dtype(name: str, device: torch.device) -> tuple[torch.dtype, list[str]]:
    if name == "float16" and device.type != "cuda":
        return torch.float32, ["products of quantized weights in float16 need a GPU; float32 is used"]
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16, ["this GPU has no bfloat16; products of quantized weights use float16"]
    dtype: torch.dtype = getattr(torch, name)
    return dtype, []
