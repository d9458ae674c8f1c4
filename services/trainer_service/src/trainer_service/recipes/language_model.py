"""Training of a language model on replies, on plain text or on classes: full, or with a low-rank adapter (LoRA,
arXiv:2106.09685), also on quantized weights.

The loop is written out instead of handed to a trainer class: it takes its first step several times sooner (no dataset
is mapped, no trainer set up), and it alone decides what a step is, which makes stopping and resuming exact. The model
comes from transformers, the adapter from PEFT; the losses are those of trl.SFTTrainer, which a test compares.
"""

from dataclasses import dataclass
from typing import Any

import torch

from trainer_service.recipes import randomness
from trainer_service.recipes.bookkeeping import Bookkeeper
from trainer_service.recipes.checkpointing import Checkpoints
from trainer_service.recipes.config import Job
from trainer_service.recipes.data import Step
from trainer_service.recipes.data_setup import Data, add_test_rows
from trainer_service.recipes.losses import TokenLoss, evaluate, objective_of
from trainer_service.recipes.merging import merge_if_asked
from trainer_service.recipes.optimizers import Optimisation
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.prefetch import prefetch
from trainer_service.recipes.preparation import prepare
from trainer_service.recipes.saving import Beside, save_final
from trainer_service.recipes.world import World
from workerkit.child.events import EventWriter
from workerkit.child.stopping import StopRequest


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a training has before its first step. objective computes losses, parallel does so over processes."""

    job: Job
    events: EventWriter
    world: World
    model: Any
    data: Data
    formats: Precision
    objective: Any
    parallel: Any
    optimisation: Optimisation
    books: Bookkeeper
    checkpoints: Checkpoints
    total_steps: int


def train(job: Job, events: EventWriter, stop: StopRequest, world: World) -> None:
    """Trains as the job says; ends with a done or a stopped event.

    Raises RecipeError, ModelkitError, OSError, MemoryError or torch.OutOfMemoryError.
    """
    events.phase("loading")
    run = set_up(job, events, world)
    with run.checkpoints:
        stopped = take_steps(run, stop)
        events.log(str(run.data.rows.counts))
        run.books.finish(predicted_bytes=job.predicted_memory_bytes)
        if stopped:
            with run.optimisation.settled():
                run.checkpoints.stop()
            return
    events.phase("saving")
    save(run)


def set_up(job: Job, events: EventWriter, world: World) -> Run:
    """Loads model and data, and goes to where a checkpoint was when there is one to go on from."""
    training = job.finetune.training
    model, data, formats = prepare(job, events, world)
    per_epoch = data.batches.steps_per_epoch(world.size)
    total_steps = training.total_steps(per_epoch)
    objective = objective_of(job.finetune.language_model.objective, model)
    parallel = world.parallel(objective, training.parallelism)
    optimisation = Optimisation(model, training, formats, world.device, total_steps=total_steps)
    books = Bookkeeper(
        training,
        events,
        world,
        total_steps=total_steps,
        per_epoch=per_epoch,
        runs=job.runs,
        perplexity=isinstance(objective, TokenLoss),
    )
    checkpoints = Checkpoints(job, model, data.tokenizer, optimisation.parts, books, events, world)
    randomness.seed(training.seed + world.rank)
    if job.resume_from:
        checkpoints.resume(job.resume_from)
    return Run(
        job, events, world, model, data, formats, objective, parallel, optimisation, books, checkpoints, total_steps
    )


def take_steps(run: Run, stop: StopRequest) -> bool:
    """Trains to the last step, or until it ends early; whether it was asked to stop."""
    books, data, world, optimisation = run.books, run.data, run.world, run.optimisation
    stopping = 0.0
    books.begin()
    steps = data.batches.steps(books.step, run.total_steps, rank=world.rank, world=world.size)
    for work in books.feed(prefetch(steps)):
        mine = (work.trained_tokens, work.tokens, work.rows, stop.requested, books.save_is_overdue())
        trained_tokens, tokens, rows, stopping, overdue = world.sum(mine)
        if stopping or books.stop_early:
            break
        loss = accumulate(run.parallel, work, trained_tokens, optimisation, run.formats, world)
        norm, rate = optimisation.step()
        books.stepped(loss, norm, rate, tokens=tokens, rows=rows)
        if data.evaluates and books.should_evaluate():
            with books.evaluating(), optimisation.settled():
                found = evaluate(run.objective, data.held_out.batches, run.formats, world)
            optimisation.evaluated(found.loss)
            books.evaluated(found.loss, found.extra)
        due = books.should_save() or overdue > 0
        with optimisation.settled(when=due):
            run.checkpoints.after_step(due=due)
    if 0 < books.step < run.total_steps:
        books.ended()
    return bool(stopping)


def save(run: Run) -> None:
    """Writes the finished model; the process that leads tells where."""
    job, books, world = run.job, run.books, run.world
    books.loss_is_finite()
    with run.optimisation.settled():
        weights = run.checkpoints.whole_weights()
    if world.leads:
        with run.optimisation.settled():
            save_final(
                run.model,
                run.data.tokenizer,
                job.output_dir,
                stored=run.formats.stored,
                beside=Beside(runs=job.runs, origin=run.checkpoints.origin),
                weights=weights,
            )
            merge_if_asked(job, run.events)
            add_test_rows(job)
        run.events.done(path=job.output_dir, step=books.step)
    world.wait()


def accumulate(
    parallel: Any, work: Step, trained_tokens: float, optimisation: Optimisation, formats: Precision, world: World
) -> torch.Tensor:
    """Adds up the gradients of a step's forward passes; this process's share of the step's loss."""
    loss = torch.zeros((), device=world.device)
    for index, batch in enumerate(work.batches, start=1):
        with world.accumulating(parallel, more=index < len(work.batches)):
            with formats.autocast(world.device):
                part = parallel(batch.to(world.device)) / max(trained_tokens, 1)
            optimisation.backward(part * world.size)
        loss += part.detach()
    return loss
