"""Saves and resumes a running job: weights, optimiser, schedule, random generators, position in the data."""

from pathlib import Path
from typing import Any

from trainer_service.recipes import randomness
from trainer_service.recipes.adapters import load_adapter
from trainer_service.recipes.bookkeeping import Bookkeeper
from trainer_service.recipes.config import Job
from trainer_service.recipes.errors import CheckpointUnusable
from trainer_service.recipes.events import EventWriter
from trainer_service.recipes.saving import CheckpointWriter, load_tensors, read_state
from trainer_service.recipes.world import World

RNG = "rng_state"


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
        self._adapter = hasattr(model, "peft_config")
        self._model = model
        self._parts = parts
        self._books = books
        self._events = events
        self._world = world
        self._writer = CheckpointWriter(job.checkpoints, tokenizer, job.finetune.training)
        self._saved_step = self._resumed_step = 0

    def save(self) -> None:
        """Writes a checkpoint of this step and tells of it. Raises OSError, or LossDiverged instead of saving that."""
        books = self._books
        books.require_finite()
        state, rng, loss = books.state(), randomness.capture(self._world), books.last_loss()
        if self._world.leads:
            states = {name: part.state_dict() for name, part in self._parts.items()}
            path = self._writer.write(books.step, self._model, states | {RNG: rng}, state)
            self._events.checkpoint(step=books.step, path=path, loss=loss)
        self._world.wait()
        books.saved()
        self._saved_step = books.step

    def stop(self) -> None:
        """Ends on request: saves what was trained since the last checkpoint."""
        step = self._books.step
        if step > max(self._saved_step, self._resumed_step):
            self.save()
        self._events.log(f"stopped after step {step} of {self._books.total_steps}")
        self._events.stopped(step=self._saved_step)

    def resume(self, checkpoint: Path) -> None:
        """Restores everything from a checkpoint; the weights of a full training were loaded from it already.

        Raises CheckpointUnusable when it is of another kind of job.
        """
        state = read_state(checkpoint)
        if self._adapter:
            load_adapter(self._model, checkpoint)
        try:
            for name, part in self._parts.items():
                part.load_state_dict(load_tensors(checkpoint / f"{name}.pt"))
            self._books.restore(state)
            restored = randomness.restore(load_tensors(checkpoint / f"{RNG}.pt"), self._world)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointUnusable(f"{checkpoint} does not fit this job: {error}") from error
        self._resumed_step = self._books.step
        self._events.log(f"going on after step {self._books.step}, from {checkpoint.name}")
        if not restored:
            self._events.log("the job ran on other devices before: dropout takes another course from here")
        if state.get("steps_per_epoch") != self._books.per_epoch:
            self._events.log("the steps of an epoch have changed: rows may be seen more or less often in this one")
