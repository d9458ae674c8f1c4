"""Looks at the losses of a training for what people would otherwise have to notice: divergence, stall, overfitting.

Every finding is made from numbers that all data-parallel processes share, so that all of them come to it at the same
step, and each kind is found once in a training.
"""

import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer_service.recipes import remedies
from trainer_service.recipes.config import Training

DIVERGENCE, STALL, OVERFITTING = "divergence", "stall", "overfitting"

# An explosion: so many told losses in a row, over so many steps, far above the first loss or the best one.
EXPLODED_POINTS, EXPLODED_STEPS = 5, 50
# A stall: the mean loss of the later half of so many points, each a mean over some steps, is not below the earlier
# half's by this share, and noise cannot have hidden a fall.
STALL_POINTS, STALL_STEPS, STALL_SHARE, LEAST_FALL = 20, 200, 0.2, 0.005
SIZEABLE_RATE = 0.1
LEARNT = 0.01
RISEN = 1.2  # that is no stall, but the beginning of a divergence
# Overfitting: so many evaluations in a row, each worse than the one before, by this share in all.
RISING_EVALUATIONS, LEAST_RISE = 3, 0.005


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that goes wrong, and what helps."""

    kind: str
    message: str
    remedies: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.message}. What helps: {'; '.join(self.remedies)}"


class LossWatch:
    """Follows the training losses that are told and the validation losses."""

    def __init__(self, training: Training, total_steps: int) -> None:
        self._explosion = Explosion()
        self._stall = Stall(training.learning_rate, max(STALL_STEPS, round(STALL_SHARE * total_steps)))
        self._evaluations: deque[tuple[float, float | None]] = deque(maxlen=RISING_EVALUATIONS + 1)
        self._train_loss: float | None = None
        self._found: set[str] = set()

    def told(self, step: int, loss: float, rate: float) -> Iterator[Finding]:
        """The mean loss since it was told last, and the learning rate now."""
        if not math.isfinite(loss):
            yield from self._once(Finding(DIVERGENCE, not_a_number(step), remedies.DIVERGED))
            return
        self._train_loss = loss
        if message := self._explosion.told(step, loss):
            yield from self._once(Finding(DIVERGENCE, message, remedies.DIVERGED))
        if message := self._stall.told(step, loss, rate):
            yield from self._once(Finding(STALL, message, remedies.LOSS_NOT_FALLING))

    def evaluated(self, step: int, loss: float) -> Iterator[Finding]:
        """The loss of the validation rows."""
        self._evaluations.append((loss, self._train_loss))
        losses = [validation for validation, _ in self._evaluations]
        trained = (self._evaluations[0][1], self._train_loss)
        if len(losses) <= RISING_EVALUATIONS or trained[0] is None or trained[1] is None:
            return
        rises = all(later > earlier for earlier, later in itertools.pairwise(losses))
        if rises and losses[-1] > (1 + LEAST_RISE) * losses[0] and trained[1] < trained[0]:
            message = (
                f"overfitting: at step {step} the validation loss has risen for {RISING_EVALUATIONS} evaluations, from "
                f"{losses[0]:.4f} to {losses[-1]:.4f}, while the training loss fell to {trained[1]:.4f}"
            )
            yield from self._once(Finding(OVERFITTING, message, remedies.OVERFITTING))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, as plain JSON."""
        return {
            "explosion": self._explosion.state(),
            "stall": self._stall.state(),
            "evaluations": [list(pair) for pair in self._evaluations],
            "train_loss": self._train_loss,
            "found": sorted(self._found),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._explosion.restore(state["explosion"])
        self._stall.restore(state["stall"])
        self._evaluations.extend((loss, trained) for loss, trained in state["evaluations"])
        self._train_loss = state["train_loss"]
        self._found = set(state["found"])

    def _once(self, finding: Finding) -> Iterator[Finding]:
        if finding.kind not in self._found:
            self._found.add(finding.kind)
            yield finding


class Explosion:
    """A loss that stays far above where it was."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._best = math.inf
        self._best_step = 0
        self._points = 0
        self._since = 0

    def told(self, step: int, loss: float) -> str:
        """What to say once it has exploded, else nothing."""
        if self._first is None:
            self._first = loss
        if loss < self._best:
            self._best, self._best_step = loss, step
        above_first = loss > self._first + max(1.0, self._first / 2)
        above_best = loss > 3 * self._best and loss > self._best + 3.0
        if not (above_first or above_best):
            self._points = 0
            return ""
        if not self._points:
            self._since = step
        self._points += 1
        if self._points < EXPLODED_POINTS or step - self._since < EXPLODED_STEPS:
            return ""
        return (
            f"the loss has exploded: it is {loss:.2f} at step {step}; it began with {self._first:.2f} and was "
            f"{self._best:.2f} at its best, at step {self._best_step}"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        best = None if math.isinf(self._best) else self._best
        known = {"first": self._first, "best": best, "best_step": self._best_step}
        return {**known, "points": self._points, "since": self._since}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._first, self._best_step = state["first"], int(state["best_step"])
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._points, self._since = int(state["points"]), int(state["since"])


class Stall:
    """A loss that has not fallen over a window of steps although the learning rate is no small one."""

    def __init__(self, peak_rate: float, window: int) -> None:
        self._least_rate = SIZEABLE_RATE * peak_rate
        self._every = window / STALL_POINTS
        self._points: deque[tuple[int, float]] = deque(maxlen=STALL_POINTS)
        self._pending: list[float] = []

    def told(self, step: int, loss: float, rate: float) -> str:
        """What to say once it has stalled, else nothing."""
        if rate < self._least_rate:
            self._points.clear()
            self._pending.clear()
            return ""
        self._pending.append(loss)
        if self._points and step - self._points[-1][0] < self._every:
            return ""
        self._points.append((step, statistics.fmean(self._pending)))
        self._pending.clear()
        return self._judge(step) if len(self._points) == STALL_POINTS else ""

    def _judge(self, step: int) -> str:
        losses = [loss for _, loss in self._points]
        half = STALL_POINTS // 2
        before, now = statistics.fmean(losses[:half]), statistics.fmean(losses[half:])
        noise = math.sqrt((statistics.variance(losses[:half]) + statistics.variance(losses[half:])) / half)
        if now < LEARNT or now > RISEN * before or before - now + noise >= LEAST_FALL * before:
            return ""
        steps = step - self._points[0][0]
        return (
            f"the training loss has not fallen for {steps} steps: it was {before:.4f} and is {now:.4f} at step {step}"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"points": list(self._points), "pending": list(self._pending)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._points.extend((int(step), float(loss)) for step, loss in state["points"])
        self._pending = [float(loss) for loss in state["pending"]]


def not_a_number(step: int) -> str:
    """Says that a loss is NaN or infinite."""
    return f"the loss is no longer a number at step {step}"
