"""What surrounds the training loop: metrics, progress, when to evaluate and save, when to end early.

Everything that continues after an interruption is in `state`, so the curves of a resumed job go on as if nothing had
happened.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from trainer_service.recipes import memory, remedies
from trainer_service.recipes.config import Training
from trainer_service.recipes.errors import LossDiverged
from trainer_service.recipes.records import Records
from trainer_service.recipes.schedules import lost_warmup
from trainer_service.recipes.sharding import whole
from trainer_service.recipes.waiting import Waiting, computes_slowly
from trainer_service.recipes.watching import DIVERGENCE, Finding, LossWatch, not_a_number
from trainer_service.recipes.world import World
from trainer_service.words import size
from workerkit.child.events import WARNING, EventWriter

CHECK_STEPS = 50

T = TypeVar("T")


class Bookkeeper:
    """Follows a training of total_steps optimiser steps, of which per_epoch see every row once.

    TensorBoard files are written beneath runs. perplexity: the losses are those of a language model, whose exponential
    means something.
    """

    def __init__(
        self,
        training: Training,
        events: EventWriter,
        world: World,
        *,
        total_steps: int,
        per_epoch: int,
        runs: Path | None = None,
        perplexity: bool = True,
    ) -> None:
        self.step = 0
        self.total_steps = total_steps
        self.stop_early = False
        self._training = training
        self._events = events
        self._world = world
        self.per_epoch = per_epoch
        self._perplexity = perplexity
        self._records = Records(events, runs if world.leads else None)
        self._watch = LossWatch(training, total_steps)
        self._ended_by_watch = False
        self._waiting = Waiting()
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
        self._loss_steps = 0
        self._last_loss: torch.Tensor | None = None
        self._best = math.inf
        self._evaluations_without_gain = 0
        self._tokens = self._rows = 0.0
        self._since = self._saved_at = time.monotonic()
        self._told = False
        self._told_a_number = True

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
            "logging_steps": self._training.logging_steps,
            "save_steps": self._training.save_steps,
            "eval_steps": self._training.eval_interval,
            "train_batch_size": self._training.per_device_train_batch_size,
            "seed": self._training.seed,
            "steps_per_epoch": self.per_epoch,
            "processes": self._world.size,
            "loss_sum": total,
            "loss_steps": self._loss_steps,
            "best_metric": None if math.isinf(self._best) else self._best,
            "evaluations_without_gain": self._evaluations_without_gain,
            "ended_by_watch": self._ended_by_watch,
            "watch": self._watch.state(),
            **self._records.state(),
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
        self._ended_by_watch = bool(state["ended_by_watch"])
        self._watch.restore(state["watch"])
        self._records.restore(state)
        self.stop_early = self._ended_by_watch or self._out_of_patience()

    def begin(self) -> None:
        """The first step is about to be taken."""
        self._events.started(step=self.step, total_steps=self.total_steps)
        self._events.phase("training")
        if message := lost_warmup(self._training, self.total_steps):
            self._events.log(message, level=WARNING)
        if reason := computes_slowly(self._world.device, self._training):
            self._events.log(f"{reason}; {remedies.SLOW[0]}, or {remedies.SLOW[1]}")
        self._since = self._saved_at = time.monotonic()

    def feed(self, work: Iterable[T]) -> Iterator[T]:
        """Yields what is trained on, and measures how long training waits for it."""
        return self._waiting.feed(work)

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
            self.loss_is_finite()

    def loss_is_finite(self) -> bool:
        """Whether all losses since the last metrics are numbers, or those told just now.

        Raises LossDiverged when the job ends for that.
        """
        if math.isfinite(self._world.sum([float(self._loss_sum)])[0]) and (self._loss_steps or self._told_a_number):
            return True
        if self._training.divergence_action == "STOP":
            self.ended()
            raise LossDiverged(not_a_number(self.step), remedies.DIVERGED)
        return False

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

    def not_saved(self) -> None:
        """There was nothing worth a checkpoint; the next is not overdue before its time."""
        self._saved_at = time.monotonic()

    def saved(self, *, stall_seconds: float) -> None:
        """A checkpoint was taken, for which training stood still so long."""
        self._saved_at = time.monotonic()
        self._events.metrics(self.step, {"checkpoint_stall_seconds": stall_seconds})

    def last_loss(self) -> float | None:
        """Loss of the last step, over all processes."""
        return None if self._last_loss is None else self._world.sum([float(self._last_loss)])[0]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the validation rows are read: time that the speed of training does not count."""
        began = time.monotonic()
        self._events.phase("evaluating")
        yield
        self._since += time.monotonic() - began

    def ended(self) -> None:
        """Tells how far training came; of quick steps the last may not have been told."""
        self._events.progress(step=self.step, total_steps=self.total_steps, epoch=self.epoch, always=True)

    def evaluated(self, loss: float, extra_metrics: Mapping[str, float] | None = None) -> None:
        """The validation rows have this loss; decides whether training ends early.

        extra_metrics are told as eval_<name>.
        """
        extra = {f"eval_{name.removeprefix('eval_')}": value for name, value in (extra_metrics or {}).items()}
        self._records.add(self.step, self.epoch, {"eval_loss": loss, **self._exponential("eval_", loss), **extra})
        self._events.log(f"step {self.step}/{self.total_steps}: validation loss {loss:.4f}")
        self._events.phase("training")
        if loss < self._best - self._training.early_stopping_threshold:
            self._best, self._evaluations_without_gain = loss, 0
        else:
            self._evaluations_without_gain += 1
        for finding in self._watch.evaluated(self.step, loss):
            self._act(finding)
        if self._out_of_patience():
            waited = self._evaluations_without_gain
            self._events.log(f"the validation loss has not fallen for {waited} evaluations: training ends here")
        self.stop_early = self._ended_by_watch or self._out_of_patience()

    def finish(self, *, predicted_bytes: int = 0) -> None:
        """Training is over: tells the most memory it took, beside what was predicted."""
        peak = memory.peak_of_all(self._world)
        values = {"memory_peak_bytes": float(peak)}
        text = f"peak memory {size(peak)}"
        if predicted_bytes:
            values["memory_predicted_bytes"] = float(predicted_bytes)
            text += f", {peak / predicted_bytes:.2f} times the {size(predicted_bytes)} that were predicted"
        self._events.metrics(self.step, values)
        self._events.log(text)

    def _out_of_patience(self) -> bool:
        return 0 < self._training.early_stopping_patience <= self._evaluations_without_gain

    def _due(self, strategy: str, steps: int) -> bool:
        if strategy == "NO":
            return False
        interval = self.per_epoch if strategy == "EPOCH" else steps
        return self.step % interval == 0 or self.step == self.total_steps

    def _tell(self, norm: torch.Tensor, rate: float) -> None:
        loss = self._world.sum([float(self._loss_sum)])[0] / self._loss_steps
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        values = {
            "loss": loss,
            **self._exponential("", loss),
            "grad_norm": float(whole(norm)),
            "learning_rate": rate,
            "tokens_per_second": self._tokens / seconds,
            "samples_per_second": self._rows / seconds,
            "memory_bytes": float(memory.used_of_all(self._world)),
            "memory_peak_bytes": float(memory.peak_of_all(self._world)),
        }
        self._records.add(self.step, self.epoch, values)
        self._events.log(
            f"step {self.step}/{self.total_steps}: loss {loss:.4f}, gradient norm {values['grad_norm']:.3f}, "
            f"learning rate {rate:.3g}, {values['samples_per_second']:.4g} samples/s, "
            f"{values['tokens_per_second']:.0f} tokens/s"
        )
        for finding in self._watch.told(self.step, loss, rate):
            self._act(finding)
        if message := self._waiting.too_long():
            self._events.log(f"{message}. What helps: {'; '.join(remedies.SLOW)}", level=WARNING)
        self._told_a_number = math.isfinite(loss)
        self._loss_sum.zero_()
        self._loss_steps = 0
        self._tokens = self._rows = 0.0
        self._since = now

    def _exponential(self, prefix: str, loss: float) -> dict[str, float]:
        if not self._perplexity:
            return {}
        return {f"{prefix}perplexity": math.exp(loss) if loss < 700 else math.inf}

    def _act(self, finding: Finding) -> None:
        """What the job wants done about a finding. Raises LossDiverged."""
        action = getattr(self._training, f"{finding.kind}_action")
        if action == "STOP" and finding.kind == DIVERGENCE:
            self.ended()
            raise LossDiverged(finding.message, finding.remedies)
        if action == "IGNORE":
            return
        self._events.metrics(self.step, {f"warning_{finding.kind}": 1.0})
        self._events.log(str(finding), level=WARNING)
        if action == "STOP":
            self._ended_by_watch = self.stop_early = True
            self._events.log(f"training ends here, because {finding.kind}_action is STOP", level=WARNING)
