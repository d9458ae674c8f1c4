"""Saves and resumes a running job: weights, optimiser, schedule, random generators, position in the data."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from modelkit.identity import ORIGIN
from trainer_service.recipes import randomness
from trainer_service.recipes.background import Background
from trainer_service.recipes.bookkeeping import Bookkeeper
from trainer_service.recipes.checkpoint_files import RNG
from trainer_service.recipes.config import Job
from trainer_service.recipes.errors import CheckpointUnusable
from trainer_service.recipes.identity import origin_of
from trainer_service.recipes.resumption import rate_ratio, take_over
from trainer_service.recipes.saving import CheckpointWriter, load_tensors, read_state, weights_of
from trainer_service.recipes.sharding import spread, take_part
from trainer_service.recipes.snapshots import Snapshots
from trainer_service.recipes.world import World
from workerkit.child.events import DEBUG, WARNING, EventWriter


class Checkpoints:
    """The checkpoints of one job. parts are objects with state_dict() and load_state_dict(), by file name.

    Every process of the job calls the same methods at the same step; the first one writes.
    """

    def __init__(
        self,
        job: Job,
        model: Any,
        tokenizer: Any,
        parts: dict[str, Any],
        books: Bookkeeper,
        events: EventWriter,
        world: World,
    ) -> None:
        self._job = job
        self._sharded = any(hasattr(weight, "full_tensor") for weight in model.parameters())
        self._model = model
        self._parts = parts
        self._books = books
        self._events = events
        self._world = world
        self._writer = CheckpointWriter(job.checkpoints, tokenizer, job.finetune.training)
        self._background = Background("checkpoint")
        self._snapshots = Snapshots()
        self._origin: dict[str, Any] = {}
        self._saved_step = self._resumed_step = 0

    def __enter__(self) -> "Checkpoints":
        """Notes beside training what it is made from: later the files may have changed, or left the cache."""
        if self._world.leads:
            self._background.start(lambda: self._origin.update(origin_of(self._job)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Waits for what is being written, whatever has happened. Raises what that failed with."""
        if error is None:
            self._background.wait()
            return
        with suppress(BaseException):  # what ended the training is the cause to tell
            self._background.wait()

    @property
    def origin(self) -> dict[str, Any]:
        """What training is made from; known once the block has ended."""
        return self._origin

    def after_step(self, *, due: bool) -> None:
        """Saves when a checkpoint is due. Raises what an earlier one failed with, and what `save` raises."""
        self._background.check()
        if due:
            self.save()

    def save(self) -> None:
        """Takes a copy of this step's state and has it written while training goes on, told of when it is on disk.

        Where memory has no room for a copy, training waits for the files. So it does when the checkpoint before is
        still being written. Raises OSError, or LossDiverged; a loss that is no number is never saved.
        """
        began = time.monotonic()
        if not self._books.loss_is_finite():
            self._events.log(f"no checkpoint of step {self._books.step}: the loss is no number", level=WARNING)
            self._books.not_saved()
            return
        state, rng, loss = self._books.state(), randomness.capture(self._world), self._books.last_loss()
        if self._world.leads or self._sharded:
            weights = weights_of(self._model)
            states = {name: part.state_dict() for name, part in self._parts.items()} | {RNG: rng}
            if self._world.leads:
                self._background.wait()
                self._write(weights, states, state, loss)
            else:
                take_part([weights, states])
        self._books.saved(stall_seconds=time.monotonic() - began)
        self._saved_step = self._books.step

    def _write(
        self, weights: dict[str, torch.Tensor], states: dict[str, Any], state: dict[str, Any], loss: float | None
    ) -> None:
        step, room = self._books.step, self._sharded or self._snapshots.fits([weights, states])
        if room:
            weights, states = self._snapshots.take([weights, states])

        def write() -> None:
            began = time.monotonic()
            path = self._writer.write(step, self._model, weights, states, state | {ORIGIN: self._origin})
            self._events.checkpoint(step=step, path=path, loss=loss)
            self._events.log(f"{path.name} was written in {time.monotonic() - began:.2f} s", level=DEBUG)

        self._background.start(write)
        if not room:
            self._background.wait()

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """Of a spread model the weights as the first process gets them; all must ask. None of any other model."""
        if not self._sharded:
            return None
        weights = weights_of(self._model)
        if self._world.leads:
            self._background.wait()
            taken: dict[str, torch.Tensor] = self._snapshots.take([weights])[0]
            return taken
        take_part([weights])
        return None

    def stop(self) -> None:
        """Ends on request: saves what was trained since the last checkpoint."""
        step = self._books.step
        if step > max(self._saved_step, self._resumed_step):
            self.save()
        self._background.wait()
        self._events.log(f"stopped after step {step} of {self._books.total_steps}")
        self._events.stopped(step=self._saved_step)

    def resume(self, checkpoint: Path) -> None:
        """Restores everything but the weights from a checkpoint; those were loaded with the model.

        Raises CheckpointUnusable when it is of another kind of job.
        """
        state = read_state(checkpoint)
        try:
            ratio = rate_ratio(state, self._job)
            for name, part in self._parts.items():
                saved = load_tensors(checkpoint / f"{name}.pt")
                part.load_state_dict(spread(take_over(saved, part.state_dict(), ratio), part))
            self._books.restore(state)
            restored = randomness.restore(load_tensors(checkpoint / f"{RNG}.pt"), self._world)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointUnusable(f"{checkpoint} does not fit this job: {error}") from error
        self._resumed_step = self._books.step
        self._events.log(f"going on after step {self._books.step}, from {checkpoint.name}")
        if self._books.step >= self._books.total_steps:
            steps = f"all {self._books.total_steps} steps of this training"
            more = "for more, raise num_train_epochs or max_steps"
            self._events.log(f"nothing is left to train: {checkpoint.name} has {steps}; {more}")
        if not restored:
            self._events.log("the job ran on other devices before: dropout takes another course from here")
        if state.get("steps_per_epoch") != self._books.per_epoch:
            self._events.log("the steps of an epoch have changed: rows may be seen more or less often in this one")
