"""Which number formats a job computes in, from what it asks for and what its device can do."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from trainer_service.recipes.config import Training

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Precision:
    """weights: format of the loaded weights; compute: format of matrix products; stored: format of the base model on
    disk, which a finished model has too; notes: what differs from the wish."""

    weights: torch.dtype
    compute: torch.dtype
    stored: torch.dtype
    notes: tuple[str, ...] = ()

    @property
    def scales(self) -> bool:
        """Small gradients would vanish in float16, so the loss is scaled up."""
        return self.compute == torch.float16

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Computes within in the format of matrix products."""
        if self.compute == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.compute)


def choose(training: Training, device: torch.device, *, frozen: bool, stored: str) -> Precision:
    """Formats for a job. frozen: the model's own weights are not trained; stored: the format they have on disk.

    Trained weights are always float32. Frozen ones take the format of the computation, and on a GPU, where memory is
    scarce, the half precision they are stored in even if the job does not ask for any.
    """
    notes = []
    on_disk = HALF.get(stored, torch.float32)
    compute = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    if device.type != "cuda":
        if compute == torch.float16:
            notes.append("fp16 needs a GPU; training in float32 instead (bf16 is possible on a CPU)")
            compute = torch.float32
        if training.tf32:
            notes.append("tf32 needs a GPU; it has no effect")
    elif compute == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        notes.append("this GPU has no bfloat16; training in float16 instead")
        compute = torch.float16
    elif compute == torch.float32 and frozen and stored in HALF:
        notes.append(f"the frozen weights stay in {stored}, as they are stored")
        return Precision(on_disk, on_disk, on_disk, tuple(notes))
    return Precision(compute if frozen else torch.float32, compute, on_disk, tuple(notes))


def allow_tf32(training: Training) -> None:
    """Switches TensorFloat-32 matrix products on or off."""
    torch.set_float32_matmul_precision("high" if training.tf32 else "highest")
