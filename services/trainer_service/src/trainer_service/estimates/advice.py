"""What an estimate means in words: why a training is refused, what to do, and what the figures rest on."""

from collections.abc import Iterator

from servicekit.errors import Problem
from trainer_service.estimates.disk import Room
from trainer_service.estimates.estimator import SAMPLED_ROWS, Estimate, fitting
from trainer_service.recipes.remedies import OUT_OF_MEMORY
from trainer_service.words import size

SMALL_GPU_BYTES = 16 * 10**9
HOME_GPU_BYTES = 33 * 10**9
LARGE_MODEL = 12_500_000_000
NAMES = {"FULL": "full training", "LORA": "LoRA", "QLORA": "QLoRA"}


def problems(estimate: Estimate) -> list[Problem]:
    """Why the training cannot succeed: its disk is too small, or its weights alone fill the device."""
    found = []
    if not estimate.fits_disk:
        found.append(_disk_problem(estimate))
    shares = estimate.run.processes if estimate.finetune.training.parallelism == "FULLY_SHARDED" else 1
    if estimate.weights / shares > estimate.device.memory_total:
        found.append(Problem("finetune.language_model.method", _weights_message(estimate)))
    return found


def notes(estimate: Estimate) -> list[str]:
    """What to do where the training does not fit, then what the figures rest on."""
    return [*memory_notes(estimate), *_qlora_note(estimate), *_disk_notes(estimate), *_basis(estimate)]


def memory_notes(estimate: Estimate) -> Iterator[str]:
    """Empty when the memory suffices."""
    device = estimate.device
    if not estimate.fits_memory:
        fit = [NAMES[method] for method in fitting(estimate)]
        others = f"; by the same settings {' and '.join(fit)} would fit" if fit else ""
        yield (
            f"about {size(estimate.memory.total)} of memory are needed, {device.name} has {size(device.memory_total)}"
            f"{others}. What helps: {'; '.join(OUT_OF_MEMORY)}"
        )
    elif estimate.memory.total > device.memory_free:
        yield (
            f"about {size(estimate.memory.total)} of memory are needed and {size(device.memory_free)} of {device.name} "
            "are free now: end what else uses it"
        )


def _qlora_note(estimate: Estimate) -> Iterator[str]:
    """On small GPUs, and for large models on those that people have at home, LoRA leaves little room."""
    total = estimate.device.memory_total
    small = total < SMALL_GPU_BYTES and estimate.memory.total > total / 2
    large = total <= HOME_GPU_BYTES and estimate.run.parameters >= LARGE_MODEL
    if estimate.run.method == "LORA" and estimate.device.type == "cuda" and (small or large):
        saved = size(estimate.memory.total - estimate.by_method["QLORA"])
        yield f"QLoRA is advised on a GPU with {size(total)} for a model of this size: it needs {saved} less"


def _disk_notes(estimate: Estimate) -> Iterator[str]:
    if not estimate.fits_disk:
        yield _disk_problem(estimate).message


def _basis(estimate: Estimate) -> Iterator[str]:
    rows = estimate.rows
    if rows.mean:
        sampled = min(rows.count, SAMPLED_ROWS)
        yield f"rows have {rows.mean:.0f} tokens on average, by the first {sampled} of {rows.count} rows"
    else:
        yield "memory is that of rows of max_seq_length tokens, because the rows' own lengths are not known"
    if estimate.finetune.training.early_stopping_patience:
        yield "steps and checkpoints are the most there can be: early stopping may end the training sooner"
    if not estimate.steps_per_second:
        yield "the duration is not known yet: no training like this one has run on this machine"


def _disk_problem(estimate: Estimate) -> Problem:
    """The field that a user can change, with needed and free figures and what would fit."""
    room = estimate.room
    lacks = (
        f"{size(room.needed)} are needed in {room.path} and {size(room.free)} are free: a checkpoint has "
        f"{size(estimate.files.checkpoint)}, the finished model {size(estimate.files.output)}"
    )
    if limit := estimate.largest_limit():
        kept = f", and {estimate.kept} checkpoints would be kept. Keep at most {limit} (save_total_limit)"
        return Problem(
            "finetune.training.save_total_limit", f"{lacks}{kept}, save less often (save_steps), or free space"
        )
    smaller = _smaller(estimate, room)
    return Problem("finetune.training.save_steps", f"{lacks}; free space{smaller}")


def _smaller(estimate: Estimate, room: Room) -> str:
    if estimate.finetune.language_model.method == "FULL":
        return ", or use LoRA, whose checkpoints are small"
    if estimate.finetune.language_model.merge_after_training and estimate.files.output <= room.needed:
        return ", or leave merge_after_training out"
    return ""


def _weights_message(estimate: Estimate) -> str:
    method = estimate.finetune.language_model.method
    fit = [NAMES[other] for other in fitting(estimate)]
    advice = f"use {' or '.join(fit)}" if fit else "use a smaller base model, or devices with more memory"
    return (
        f"by {NAMES[method]} the weights alone take {size(estimate.weights)}, {estimate.device.name} has "
        f"{size(estimate.device.memory_total)}; {advice}"
    )
