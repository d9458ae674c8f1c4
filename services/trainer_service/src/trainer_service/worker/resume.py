"""Finds the checkpoint that an attempt goes on from; one that is not what its manifest says is never used."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelkit.checkpoints import MANIFEST, verify
from modelkit.errors import InvalidCheckpoint
from servicekit.objects import ObjectStore
from trainer_service.recipes.checkpoint_files import step_of
from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import task_pb2 as tasks
from workerkit.artifacts import ArtifactDamaged, fetch
from workerkit.endings import AttemptError, Failed
from workerkit.reporter import Reporter


@dataclass(frozen=True, slots=True)
class Resumption:
    """A checkpoint of this machine, verified."""

    folder: Path
    step: int


async def fetch_checkpoint(
    store: ObjectStore, candidates: Sequence[tasks.Checkpoint], folder: Path, reporter: Reporter, *, exact: bool
) -> Resumption | None:
    """The first candidate that verifies, None without any candidates. AttemptError when none does.

    With exact only the first may be used. What is passed over is told in the log, and as a fact when it is the
    task's own.
    """
    reasons = []
    for candidate in candidates[:1] if exact else candidates:
        target = folder / f"checkpoint-{candidate.step}"
        try:
            await fetch(store, candidate.prefix, target, manifest_sha256=candidate.manifest_sha256)
        except ArtifactDamaged as damaged:
            reason = f"{_name(candidate, reporter)} is damaged: {damaged}"
            reasons.append(reason)
            reporter.log([f"{reason}; it is passed over"])
            if candidate.task_id == reporter.task_id:
                rejected = facts.CheckpointRejected(prefix=candidate.prefix, step=candidate.step, reason=str(damaged))
                reporter.fact(facts.Fact(checkpoint_rejected=rejected))
            continue
        reporter.log([f"going on from {_name(candidate, reporter)}, verified"])
        return Resumption(target, candidate.step)
    if not reasons:
        return None
    if exact:
        message = f"{reasons[0]}; it was asked for, so no other is used in its place"
    else:
        others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        message = f"no checkpoint can be used: {reasons[0]}{others}"
    raise AttemptError(Failed("CHECKPOINT_DAMAGED", message, reasons))


def _name(checkpoint: tasks.Checkpoint, reporter: Reporter) -> str:
    """A checkpoint in words; that of another task by its whole name."""
    if checkpoint.task_id != reporter.task_id:
        return checkpoint.prefix
    return f"checkpoint-{checkpoint.step} of attempt {checkpoint.attempt}"


async def adopt_checkpoint(folder: Path, reporter: Reporter) -> Resumption:
    """A checkpoint that a task names by its directory, verified when it has a manifest.

    AttemptError naming every file that is missing or damaged.
    """
    known = (folder / MANIFEST).is_file()
    if known:
        try:
            await asyncio.to_thread(verify, folder)
        except InvalidCheckpoint as error:
            problems = [problem.message for problem in error.problems]
            message = f"finetune.resume_from_checkpoint: {folder}: {'; '.join(problems)}"
            raise AttemptError(Failed("CHECKPOINT_DAMAGED", message, problems)) from error
    reporter.log([f"going on from {folder}, {'verified' if known else f'which has no {MANIFEST} to verify it by'}"])
    return Resumption(folder, step_of(folder))
