"""Whatever users, workers, the reconciler and late facts do, in any order, the rules hold."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from task_service.domain.lifecycle import (
    FINAL,
    HELD,
    Change,
    Directive,
    Failure,
    Lifecycle,
    NotAllowed,
    Outcome,
    State,
)
from task_service.domain.policy import Policy

SECOND = 1_000_000
POLICY = Policy(max_attempts=3, backoff_initial=1, backoff_limit=60, lease_seconds=30)
CRASH = Failure("CRASHED", "it crashed")
WORKERS = st.sampled_from(["w1", "w2", "w3"])


class LifecycleMachine(RuleBasedStateMachine):
    """Messages stay in the queue for ever and are delivered at any time, to any worker, as often as it likes."""

    messages = Bundle("messages")

    @initialize(target=messages, blocked=st.booleans())
    def create(self, blocked: bool) -> object:
        self.life = Lifecycle(blocked=blocked)
        self.now = 1000 * SECOND
        self.ends_in_run = 0
        self.deleted = False
        self.last_attempt = 0
        self.running: set[tuple[int, str]] = set()
        outcome = self.life.created()
        return self.follow(outcome)

    def follow(self, outcome: Outcome, before: State | None = None) -> object:
        """Keeps the books; the new message, if there is one."""
        if self.life.state in FINAL and before not in FINAL:
            self.ends_in_run += 1
        if outcome.change is Change.RESUMED:
            self.ends_in_run = 0
        if outcome.dispatch_after is None:
            return multiple()
        assert self.life.state is State.PENDING
        assert not self.life.blocked
        return self.life.dispatch_attempt

    @rule(seconds=st.integers(0, 40))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(target=messages, message=messages, worker=WORKERS)
    def deliver(self, message: int, worker: str) -> object:
        if self.deleted:
            return multiple()
        before, attempt, holder = self.life.state, self.life.attempt, self.life.worker
        alive = POLICY.lease_is_alive(self.life.heartbeat_time, self.now)
        claim = self.life.claim(message, worker, self.now, POLICY)
        if claim.refusal is None:
            assert self.life.state in HELD
            assert self.life.worker == worker
            if before in HELD and holder != worker:
                assert not alive
            if (self.life.attempt, holder) != (attempt, worker) or before is State.PENDING:
                assert self.life.attempt > attempt
            self.running.add((self.life.attempt, worker))
        if before in FINAL:
            assert claim.refusal is not None
        return self.follow(claim.outcome, before)

    @rule(attempt=st.integers(1, 12), worker=WORKERS)
    def heartbeat(self, attempt: int, worker: str) -> None:
        directive = self.life.heartbeat(attempt, worker, 1, self.now)
        if directive is not Directive.ABANDON:
            assert (attempt, worker) in self.running

    def current(self, attempt_offset: int) -> bool:
        """Fencing, which the caller of the domain does: only facts of the current attempt come through."""
        return attempt_offset == 0 and self.life.attempt > 0 and not self.deleted

    @rule(old=st.integers(0, 1), step=st.integers(1, 1000))
    def checkpoint(self, old: int, step: int) -> None:
        if self.current(old):
            self.life.checkpoint_saved(step)

    @rule(target=messages, old=st.integers(0, 1), end=st.sampled_from(["complete", "stop", "crash", "fail", "release"]))
    def end(self, old: int, end: str) -> object:
        if not self.current(old):
            return multiple()
        before = self.life.state
        outcome = {
            "complete": lambda: self.life.complete(self.now),
            "stop": lambda: self.life.stopped(self.now),
            "crash": lambda: self.life.fail(CRASH, True, self.now, POLICY),
            "fail": lambda: self.life.fail(CRASH, False, self.now, POLICY),
            "release": lambda: self.life.release(self.now),
        }[end]()
        if before not in HELD:
            assert outcome == Outcome()
            assert self.life.state is before
        return self.follow(outcome, before)

    @rule(target=messages)
    def lose(self) -> object:
        before = self.life.state
        return self.follow(self.life.lose(CRASH, self.now, POLICY), before)

    @rule(target=messages, message=messages)
    def undeliverable(self, message: int) -> object:
        before = self.life.state
        return self.follow(self.life.undeliverable(message, CRASH, self.now, POLICY), before)

    @rule(target=messages, good=st.booleans())
    def dependency_ends(self, good: bool) -> object:
        before = self.life.state
        outcome = self.life.unblock() if good else self.life.dependency_failed(CRASH, self.now)
        return self.follow(outcome, before)

    @rule(discard=st.booleans())
    def stop(self, discard: bool) -> None:
        before = self.life.state
        try:
            outcome = self.life.stop(discard, self.now)
        except NotAllowed:
            assert before in FINAL
        else:
            self.follow(outcome, before)

    @rule(target=messages, step=st.integers(0, 500), blocked=st.booleans())
    def resume(self, step: int, blocked: bool) -> object:
        before, run = self.life.state, self.life.run
        if self.deleted:
            return multiple()
        try:
            outcome = self.life.resume(step, step, blocked)
        except NotAllowed:
            assert before not in (State.STOPPED, State.FAILED)
            return multiple()
        assert self.life.run == run + 1
        return self.follow(outcome, before)

    @rule(force=st.booleans())
    def delete(self, force: bool) -> None:
        before = self.life.state
        try:
            self.follow(self.life.delete(force, self.now), before)
            self.deleted = True
        except NotAllowed:
            assert before in HELD
            assert not force

    @invariant()
    def attempts_only_grow(self) -> None:
        assert self.life.attempt >= self.last_attempt
        self.last_attempt = self.life.attempt

    @invariant()
    def a_run_ends_once(self) -> None:
        assert self.ends_in_run == (1 if self.life.state in FINAL else 0)

    @invariant()
    def the_next_message_names_a_new_attempt(self) -> None:
        if self.life.state is State.PENDING:
            assert self.life.dispatch_attempt > self.life.attempt

    @invariant()
    def the_books_agree(self) -> None:
        life = self.life
        assert bool(life.end_time) == life.ended
        assert life.failures <= POLICY.max_attempts
        assert not (life.blocked and life.state is not State.PENDING)
        if life.state is State.FAILED:
            assert life.error_reason
        if life.state is State.COMPLETED:
            assert not life.error_reason
        if life.state not in HELD:
            assert life.pid == 0


TestLifecycleMachine = LifecycleMachine.TestCase
TestLifecycleMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
