"""The life of a task as a state machine.

A task is worked on in attempts. The queue's message names the attempt that it starts (dispatch_attempt); a worker that
claims a task whose holder fell silent starts the next attempt under the same message. Whatever is not from the
current attempt changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from task_service.domain.policy import Policy


class State(IntEnum):
    """Where a task stands."""

    PENDING = 1
    RUNNING = 2
    STOPPING = 3
    STOPPED = 4
    COMPLETED = 5
    FAILED = 6


HELD = frozenset({State.RUNNING, State.STOPPING})
FINAL = frozenset({State.STOPPED, State.COMPLETED, State.FAILED})
RESUMABLE = frozenset({State.STOPPED, State.FAILED})


class StopMode(IntEnum):
    """What becomes of the work done when a task is stopped."""

    NONE = 0
    SAVE = 1
    DISCARD = 2


class Directive(IntEnum):
    """What a worker should do with its attempt."""

    CONTINUE = 1
    STOP_AND_SAVE = 2
    STOP_AND_DISCARD = 3
    ABANDON = 4


class Change(StrEnum):
    """What subscribers are told of."""

    CREATED = "created"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRIED = "retried"
    RESUMED = "resumed"
    DELETED = "deleted"


class Refusal(StrEnum):
    """Why a worker does not get a task."""

    ENDED = "ended"
    STALE = "stale"
    HELD = "held"


class AttemptEnd(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"
    RELEASED = "released"
    DELETED = "deleted"


class NotAllowed(Exception):
    """The state of the task does not allow what was asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt or a task failed: a stable word, a sentence, every problem."""

    reason: str
    message: str
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from a transition: an event, a queue message after some seconds, the end of an attempt."""

    change: Change | None = None
    dispatch_after: float | None = None
    attempt_end: AttemptEnd | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a worker: refused, or the attempt it may run. lost is the attempt it takes over from, or 0."""

    outcome: Outcome
    refusal: Refusal | None = None
    lost: int = 0


NOTHING = Outcome()


@dataclass(slots=True)
class Lifecycle:
    """The part of a task that its rules are about. Times are microseconds on the database's clock."""

    state: State = State.PENDING
    run: int = 1
    attempt: int = 0
    dispatch_attempt: int = 1
    failures: int = 0
    blocked: bool = False
    stop_mode: StopMode = StopMode.NONE
    resume_step: int = 0
    checkpoint_high: int = 0
    worker: str = ""
    pid: int = 0
    heartbeat_time: int = 0
    error_reason: str = ""
    error_message: str = ""
    error_problems: list[str] = field(default_factory=list)
    start_time: int = 0
    end_time: int = 0

    @property
    def ended(self) -> bool:
        """Whether only a user's resume can start it again."""
        return self.state in FINAL

    # What users ask for.

    def created(self) -> Outcome:
        """The task was accepted."""
        return Outcome(Change.CREATED, None if self.blocked else 0.0)

    def stop(self, discard: bool, now: int) -> Outcome:
        """A user wants it to end. Raises NotAllowed when it has ended."""
        mode = StopMode.DISCARD if discard else StopMode.SAVE
        if self.state is State.PENDING:
            self._end(State.STOPPED, now)
            return Outcome(Change.STOPPED)
        if self.state is State.RUNNING:
            self.state, self.stop_mode = State.STOPPING, mode
            return Outcome(Change.STOPPING)
        if self.state is State.STOPPING:
            if mode <= self.stop_mode:
                return NOTHING
            self.stop_mode = mode
            return Outcome(Change.STOPPING)
        raise NotAllowed(f"the task is not running: it is {self.state.name}")

    def resume(self, step: int, base_step: int, blocked: bool) -> Outcome:
        """A user wants a new run, from the checkpoint at step or, with 0, the newest one, which is at base_step."""
        if self.state not in RESUMABLE:
            raise NotAllowed(f"only a STOPPED or FAILED task can be resumed; this one is {self.state.name}")
        self.state = State.PENDING
        self.run += 1
        self.failures, self.stop_mode = 0, StopMode.NONE
        self.resume_step, self.checkpoint_high = step, base_step
        self.start_time = self.end_time = 0
        self.blocked = blocked
        self._clear_error()
        self._next_dispatch()
        return Outcome(Change.RESUMED, None if blocked else 0.0)

    def delete(self, force: bool, now: int) -> Outcome:
        """A user wants it gone. Raises NotAllowed while it runs, unless forced."""
        held = self.state in HELD
        if held and not force:
            raise NotAllowed(f"the task is {self.state.name}: stop it first, or force its deletion")
        if not self.ended:
            self.stop_mode = StopMode.DISCARD
            self._end(State.STOPPED, now)
        return Outcome(Change.DELETED, attempt_end=AttemptEnd.DELETED if held else None)

    # What the tasks it depends on bring.

    def unblock(self) -> Outcome:
        """Everything it depends on is complete."""
        if self.state is not State.PENDING or not self.blocked:
            return NOTHING
        self.blocked = False
        return Outcome(dispatch_after=0.0)

    def dependency_failed(self, failure: Failure, now: int) -> Outcome:
        """Something that it waits for will not come."""
        if self.state is not State.PENDING or not self.blocked:
            return NOTHING
        self._fail(failure, now)
        return Outcome(Change.FAILED, reason=failure.reason)

    # What workers ask for.

    def claim(self, attempt: int, worker: str, now: int, policy: Policy) -> Claim:
        """A worker got the queue's message that names an attempt."""
        if self.ended:
            return Claim(NOTHING, Refusal.ENDED)
        if attempt != self.dispatch_attempt or self.blocked:
            return Claim(NOTHING, Refusal.STALE)
        if self.state is State.PENDING:
            return Claim(self._start(self.dispatch_attempt, worker, now))
        if self.worker == worker:
            self.heartbeat_time = now
            return Claim(NOTHING)
        if policy.lease_is_alive(self.heartbeat_time, now):
            return Claim(NOTHING, Refusal.HELD)
        return self._take_over(worker, now, policy)

    def _take_over(self, worker: str, now: int, policy: Policy) -> Claim:
        lost, message = self.attempt, self.dispatch_attempt
        outcome = self.lose(worker_lost(self.worker), now, policy)
        if self.ended:
            return Claim(outcome, Refusal.ENDED, lost)
        self.dispatch_attempt = message
        return Claim(self._start(lost + 1, worker, now), None, lost)

    def heartbeat(self, attempt: int, worker: str, pid: int, now: int) -> Directive:
        """A worker says that it is alive and asks what is wanted of its attempt."""
        if self.state not in HELD or attempt != self.attempt or worker != self.worker:
            return Directive.ABANDON
        self.heartbeat_time, self.pid = now, pid
        if self.state is State.RUNNING:
            return Directive.CONTINUE
        return Directive.STOP_AND_DISCARD if self.stop_mode is StopMode.DISCARD else Directive.STOP_AND_SAVE

    # What the current attempt says. The caller has compared the attempt.

    def checkpoint_saved(self, step: int) -> None:
        """A checkpoint is stored; one that is further than any before shows that attempts are worth while."""
        if step > self.checkpoint_high:
            self.checkpoint_high, self.failures = step, 0

    def complete(self, now: int, *, attempt_was_lost: bool = False) -> Outcome:
        """The result is stored. An attempt given up for lost counts too, as long as none has taken its place."""
        if self.state not in HELD and not (self.state is State.PENDING and attempt_was_lost):
            return NOTHING
        self._clear_error()
        self._end(State.COMPLETED, now)
        return Outcome(Change.COMPLETED, attempt_end=AttemptEnd.COMPLETED)

    def stopped(self, now: int, why: Failure | None = None) -> Outcome:
        """The worker ended because a stop was asked for, or, when nobody did that, because of why."""
        if self.state not in HELD:
            return NOTHING
        self._clear_error()
        if why is not None:
            self._set_error(why)
        self._end(State.STOPPED, now)
        return Outcome(Change.STOPPED, attempt_end=AttemptEnd.STOPPED, reason=why.reason if why else "")

    def fail(self, failure: Failure, retryable: bool, now: int, policy: Policy) -> Outcome:
        """The attempt failed; another one may follow if retryable."""
        if self.state not in HELD:
            return NOTHING
        if retryable:
            return self._retry(failure, AttemptEnd.FAILED, now, policy)
        self._fail(failure, now)
        return Outcome(Change.FAILED, attempt_end=AttemptEnd.FAILED, reason=failure.reason)

    def release(self, now: int) -> Outcome:
        """The worker gives the task back; that is nobody's failure."""
        if self.state not in HELD:
            return NOTHING
        if self.state is State.STOPPING:
            self._end(State.STOPPED, now)
            return Outcome(Change.STOPPED, attempt_end=AttemptEnd.RELEASED)
        self.state, self.pid = State.PENDING, 0
        self._next_dispatch()
        return Outcome(Change.RETRIED, 0.0, AttemptEnd.RELEASED)

    # What the reconciler and the dead-letter handler find.

    def lose(self, failure: Failure, now: int, policy: Policy) -> Outcome:
        """The worker has been silent for longer than its lease."""
        if self.state not in HELD:
            return NOTHING
        return self._retry(failure, AttemptEnd.LOST, now, policy)

    def undeliverable(self, attempt: int, failure: Failure, now: int, policy: Policy) -> Outcome:
        """The queue gave up on the message of an attempt that no worker managed to claim."""
        if self.state is not State.PENDING or self.blocked or attempt != self.dispatch_attempt:
            return NOTHING
        outcome = self._retry(failure, AttemptEnd.LOST, now, policy)
        return Outcome(outcome.change, outcome.dispatch_after, None, outcome.reason)

    def _retry(self, failure: Failure, end: AttemptEnd, now: int, policy: Policy) -> Outcome:
        if self.state is State.STOPPING:
            self._set_error(failure)
            self._end(State.STOPPED, now)
            return Outcome(Change.STOPPED, attempt_end=end, reason=failure.reason)
        self.failures += 1
        if self.failures >= policy.max_attempts:
            attempts = f"gave up after {self.failures} attempts without a new checkpoint; the last one: "
            message = failure.message if self.failures == 1 else attempts + failure.message
            self._fail(Failure(failure.reason, message, failure.problems), now)
            return Outcome(Change.FAILED, attempt_end=end, reason=failure.reason)
        self._set_error(failure)
        self.state, self.pid = State.PENDING, 0
        self._next_dispatch()
        return Outcome(Change.RETRIED, policy.backoff(self.failures), end, failure.reason)

    def _start(self, attempt: int, worker: str, now: int) -> Outcome:
        self.state = State.RUNNING
        self.attempt, self.worker, self.pid = attempt, worker, 0
        self.heartbeat_time = now
        self.start_time = self.start_time or now
        return Outcome(Change.STARTED)

    def _next_dispatch(self) -> None:
        self.dispatch_attempt = max(self.attempt, self.dispatch_attempt) + 1

    def _end(self, state: State, now: int) -> None:
        self.state, self.end_time, self.pid = state, now, 0
        self.blocked = False

    def _fail(self, failure: Failure, now: int) -> None:
        self._set_error(failure)
        self._end(State.FAILED, now)

    def _set_error(self, failure: Failure) -> None:
        self.error_reason, self.error_message = failure.reason, failure.message
        self.error_problems = list(failure.problems)

    def _clear_error(self) -> None:
        self.error_reason, self.error_message, self.error_problems = "", "", []


def worker_lost(worker: str) -> Failure:
    """The failure of an attempt whose worker fell silent."""
    return Failure("WORKER_LOST", f"worker {worker} stopped sending heartbeats; it was killed, hung or cut off")


def dependency_failed(task_id: str, what: str) -> Failure:
    """The failure of a task that waits for one that will not be completed."""
    return Failure("DEPENDENCY_FAILED", f"task {task_id}, which this one depends on, {what}")
