"""What surrounds the training loop: metrics, progress, when to evaluate and save, when to end early.

Everything that continues after an interruption is in `state`, so the curves of a resumed job go on as if nothing had
happened.
"""

import math
import time
from typing import Any

import torch

from trainer_service.recipes.config import Training
from trainer_service.recipes.errors import LossDiverged
from trainer_service.recipes.events import EventWriter
from trainer_service.recipes.world import World

CHECK_STEPS = 50


class Bookkeeper:
    """Follows a training of total_steps optimiser steps, of which per_epoch see every row once."""

    def __init__(
        self, training: Training, events: EventWriter, world: World, *, total_steps: int, per_epoch: int
    ) -> None:
        self.step = 0
        self.total_steps = total_steps
        self.stop_early = False
        self._training = training
        self._events = events
        self._world = world
        self.per_epoch = per_epoch
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
        self._loss_steps = 0
        self._last_loss: torch.Tensor | None = None
        self._best = math.inf
        self._evaluations_without_gain = 0
        self._tokens = self._rows = 0.0
        self._since = self._saved_at = time.monotonic()
        self._told = False

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.step / self.per_epoch

    def state(self) -> dict[str, Any]:
        """What trainer_state.json holds; every process must call this at the same step."""
        total = self._world.sum([float(self._loss_sum)])[0]
        return {
            "global_step": self.step,
            "max_steps": self.total_steps,
            "epoch": self.epoch,
            "num_train_epochs": self._training.num_train_epochs,
            "steps_per_epoch": self.per_epoch,
            "processes": self._world.size,
            "loss_sum": total,
            "loss_steps": self._loss_steps,
            "best_metric": None if math.isinf(self._best) else self._best,
            "evaluations_without_gain": self._evaluations_without_gain,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.step = int(state["global_step"])
        if self._world.leads:
            self._loss_sum.fill_(float(state["loss_sum"]))
        self._loss_steps = int(state["loss_steps"])
        best = state["best_metric"]
        self._best = math.inf if best is None else float(best)
        self._evaluations_without_gain = int(state["evaluations_without_gain"])
        self.stop_early = self._out_of_patience()

    def begin(self) -> None:
        """The first step is about to be taken."""
        self._events.started(step=self.step, total_steps=self.total_steps)
        self._events.phase("training")
        self._since = self._saved_at = time.monotonic()

    def stepped(self, loss: torch.Tensor, norm: torch.Tensor, rate: float, *, tokens: float, rows: float) -> None:
        """A step was taken: this process's share of its loss, the norm of its gradients, its learning rate, and the
        tokens and rows that all processes saw. Raises LossDiverged."""
        self.step += 1
        self._loss_sum += loss
        self._loss_steps += 1
        self._last_loss = loss
        self._tokens += tokens
        self._rows += rows
        last = self.step == self.total_steps
        self._events.progress(
            step=self.step, total_steps=self.total_steps, epoch=self.epoch, always=last or not self._told
        )
        self._told = True
        if self.step == 1 or last or self.step % self._training.logging_steps == 0:
            self._tell(norm, rate)
        elif self.step % CHECK_STEPS == 0:
            self.require_finite()

    def require_finite(self) -> None:
        """Raises LossDiverged when a loss since the last metrics was not a number."""
        if not math.isfinite(self._world.sum([float(self._loss_sum)])[0]):
            raise self._diverged()

    def should_evaluate(self) -> bool:
        """The validation rows are due."""
        return self._due(self._training.eval_strategy, self._training.eval_interval)

    def should_save(self) -> bool:
        """A checkpoint is due; the last step always has one, so that a job that dies after it is not trained again."""
        strategy = self._training.save_strategy
        return self._due(strategy, self._training.save_steps) or (self.stop_early and strategy != "NO")

    def save_is_overdue(self) -> bool:
        """More time has gone by since the last checkpoint than the job wants. Processes must agree before they act."""
        minutes = self._training.save_interval_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def saved(self, *, stall_seconds: float) -> None:
        """A checkpoint was taken, for which training stood still so long."""
        self._saved_at = time.monotonic()
        self._events.metrics(self.step, {"checkpoint_stall_seconds": stall_seconds})

    def last_loss(self) -> float | None:
        """Loss of the last step, over all processes."""
        return None if self._last_loss is None else self._world.sum([float(self._last_loss)])[0]

    def evaluated(self, loss: float) -> None:
        """The validation rows have this loss; decides whether training ends early."""
        self._events.metrics(self.step, {"eval_loss": loss, "epoch": self.epoch})
        self._events.log(f"step {self.step}/{self.total_steps}: validation loss {loss:.4f}")
        self._events.phase("training")
        if loss < self._best - self._training.early_stopping_threshold:
            self._best, self._evaluations_without_gain = loss, 0
        else:
            self._evaluations_without_gain += 1
        self.stop_early = self._out_of_patience()
        if self.stop_early:
            waited = self._evaluations_without_gain
            self._events.log(f"the validation loss has not fallen for {waited} evaluations: training ends here")

    def _out_of_patience(self) -> bool:
        return 0 < self._training.early_stopping_patience <= self._evaluations_without_gain

    def _due(self, strategy: str, steps: int) -> bool:
        if strategy == "NO":
            return False
        interval = self.per_epoch if strategy == "EPOCH" else steps
        return self.step % interval == 0 or self.step == self.total_steps

    def _tell(self, norm: torch.Tensor, rate: float) -> None:
        loss = self._world.sum([float(self._loss_sum)])[0] / self._loss_steps
        if not math.isfinite(loss):
            raise self._diverged()
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        values = {
            "loss": loss,
            "grad_norm": float(norm),
            "learning_rate": rate,
            "epoch": self.epoch,
            "tokens_per_second": self._tokens / seconds,
            "samples_per_second": self._rows / seconds,
        }
        self._events.metrics(self.step, values)
        self._events.log(
            f"step {self.step}/{self.total_steps}: loss {loss:.4f}, gradient norm {values['grad_norm']:.3f}, "
            f"learning rate {rate:.3g}, {values['tokens_per_second']:.0f} tokens/s"
        )
        self._loss_sum.zero_()
        self._loss_steps = 0
        self._tokens = self._rows = 0.0
        self._since = now

    def _diverged(self) -> LossDiverged:
        message = f"the loss is no longer a number at step {self.step}"
        advice = (
            "lower learning_rate",
            "lower max_grad_norm or add warmup_steps",
            "use bf16 or float32 instead of fp16",
            "look for damaged rows in the dataset",
        )
        return LossDiverged(message, advice)
