"""Single transitions of a task's life."""

import pytest

from task_service.domain.lifecycle import (
    AttemptEnd,
    Change,
    Directive,
    Failure,
    Lifecycle,
    NotAllowed,
    Outcome,
    Refusal,
    State,
    StopMode,
    dependency_failed,
)
from task_service.domain.policy import Policy

SECOND = 1_000_000
POLICY = Policy(max_attempts=3, backoff_initial=1.0, backoff_limit=60.0, lease_seconds=30.0)
CRASH = Failure("CRASHED", "the child ended with signal 9")


def running(now: int = 100 * SECOND) -> Lifecycle:
    life = Lifecycle()
    assert life.claim(1, "w1", now, POLICY).refusal is None
    return life


def test_a_created_task_is_queued_at_once() -> None:
    assert Lifecycle().created() == Outcome(Change.CREATED, 0.0)


def test_a_task_that_waits_for_others_is_not_queued() -> None:
    assert Lifecycle(blocked=True).created() == Outcome(Change.CREATED, None)


def test_claim_starts_the_attempt_of_the_message() -> None:
    life = Lifecycle()
    claim = life.claim(1, "w1", 5 * SECOND, POLICY)
    assert claim.outcome == Outcome(Change.STARTED)
    assert (life.state, life.attempt, life.worker) == (State.RUNNING, 1, "w1")
    assert life.start_time == life.heartbeat_time == 5 * SECOND


def test_a_message_of_another_attempt_is_stale() -> None:
    assert Lifecycle().claim(2, "w1", 0, POLICY).refusal is Refusal.STALE


def test_a_blocked_task_cannot_be_claimed() -> None:
    assert Lifecycle(blocked=True).claim(1, "w1", 0, POLICY).refusal is Refusal.STALE


@pytest.mark.parametrize("state", [State.STOPPED, State.COMPLETED, State.FAILED])
def test_an_ended_task_cannot_be_claimed(state: State) -> None:
    assert Lifecycle(state=state).claim(1, "w1", 0, POLICY).refusal is Refusal.ENDED


def test_a_redelivered_message_is_refused_while_the_lease_lives() -> None:
    life = running(100 * SECOND)
    assert life.claim(1, "w2", 129 * SECOND, POLICY).refusal is Refusal.HELD
    assert (life.attempt, life.worker) == (1, "w1")


def test_the_same_worker_may_claim_twice() -> None:
    life = running()
    again = life.claim(1, "w1", 101 * SECOND, POLICY)
    assert again.refusal is None
    assert again.outcome == Outcome()
    assert life.attempt == 1


def test_a_silent_worker_loses_the_task_to_the_next() -> None:
    life = running(100 * SECOND)
    claim = life.claim(1, "w2", 130 * SECOND, POLICY)
    assert (claim.refusal, claim.lost, claim.outcome.change) == (None, 1, Change.STARTED)
    assert (life.state, life.attempt, life.worker, life.failures) == (State.RUNNING, 2, "w2", 1)
    assert life.dispatch_attempt == 1
    assert life.error_reason == "WORKER_LOST"


def test_taking_over_counts_against_the_attempts() -> None:
    life = running(100 * SECOND)
    life.claim(1, "w2", 200 * SECOND, POLICY)
    claim = life.claim(1, "w3", 300 * SECOND, POLICY)
    assert claim.refusal is None
    claim = life.claim(1, "w4", 400 * SECOND, POLICY)
    assert (claim.refusal, claim.lost, life.state) == (Refusal.ENDED, 3, State.FAILED)
    assert claim.outcome.change is Change.FAILED
    assert life.error_message.startswith("gave up after 3 attempts")


def test_a_heartbeat_from_the_future_does_not_hold_the_task() -> None:
    life = running(5000 * SECOND)
    assert life.claim(1, "w2", 100 * SECOND, POLICY).refusal is None


def test_heartbeats_are_for_the_holder_alone() -> None:
    life = running(100 * SECOND)
    assert life.heartbeat(1, "w1", 42, 110 * SECOND) is Directive.CONTINUE
    assert (life.heartbeat_time, life.pid) == (110 * SECOND, 42)
    assert life.heartbeat(1, "w2", 43, 120 * SECOND) is Directive.ABANDON
    assert life.heartbeat(2, "w1", 43, 120 * SECOND) is Directive.ABANDON
    assert (life.heartbeat_time, life.pid) == (110 * SECOND, 42)


def test_stop_reaches_the_worker_with_its_heartbeat() -> None:
    life = running()
    assert life.stop(False, 0).change is Change.STOPPING
    assert life.heartbeat(1, "w1", 1, 0) is Directive.STOP_AND_SAVE
    assert life.stop(True, 0).change is Change.STOPPING
    assert life.heartbeat(1, "w1", 1, 0) is Directive.STOP_AND_DISCARD
    assert life.stop(False, 0) == Outcome()
    assert life.stop_mode is StopMode.DISCARD


def test_a_pending_task_stops_at_once() -> None:
    life = Lifecycle()
    assert life.stop(False, 7) == Outcome(Change.STOPPED)
    assert (life.state, life.end_time) == (State.STOPPED, 7)


@pytest.mark.parametrize("state", [State.STOPPED, State.COMPLETED, State.FAILED])
def test_an_ended_task_cannot_be_stopped(state: State) -> None:
    with pytest.raises(NotAllowed, match="not running"):
        Lifecycle(state=state).stop(False, 0)


def test_a_task_that_really_completed_is_completed_though_a_stop_was_asked_for() -> None:
    life = running()
    life.stop(False, 0)
    assert life.complete(9).change is Change.COMPLETED
    assert life.stopped(10) == Outcome()
    assert (life.state, life.end_time) == (State.COMPLETED, 9)


def test_a_stopped_task_stays_stopped() -> None:
    life = running()
    life.stop(False, 0)
    assert life.stopped(9).change is Change.STOPPED
    assert life.complete(10) == Outcome()
    assert (life.state, life.end_time) == (State.STOPPED, 9)


def test_failures_are_tried_again_later_and_later() -> None:
    life = running()
    outcome = life.fail(CRASH, True, 0, POLICY)
    assert outcome == Outcome(Change.RETRIED, 1.0, AttemptEnd.FAILED, "CRASHED")
    assert (life.state, life.dispatch_attempt) == (State.PENDING, 2)
    life.claim(2, "w1", 0, POLICY)
    assert life.fail(CRASH, True, 0, POLICY).dispatch_after == 2.0
    life.claim(3, "w1", 0, POLICY)
    last = life.fail(CRASH, True, 5, POLICY)
    assert (last.change, last.dispatch_after) == (Change.FAILED, None)
    assert (life.state, life.error_reason, life.end_time) == (State.FAILED, "CRASHED", 5)
    assert life.error_message == (
        "gave up after 3 attempts without a new checkpoint; the last one: the child ended with signal 9"
    )


def test_a_new_checkpoint_gives_new_attempts() -> None:
    life = running()
    for attempt in range(1, 6):
        life.checkpoint_saved(attempt * 100)
        assert life.fail(CRASH, True, 0, POLICY).change is Change.RETRIED
        life.claim(attempt + 1, "w1", 0, POLICY)
    assert life.attempt == 6


def test_a_checkpoint_that_is_not_further_gives_none() -> None:
    life = running()
    life.checkpoint_saved(100)
    for attempt in range(2, 4):
        life.fail(CRASH, True, 0, POLICY)
        life.claim(attempt, "w1", 0, POLICY)
        life.checkpoint_saved(100)
    assert life.fail(CRASH, True, 0, POLICY).change is Change.FAILED


def test_what_cannot_succeed_is_not_tried_again() -> None:
    life = running()
    failure = Failure("DATASET_INVALID", "two rows lack an output", ["train.jsonl:3", "train.jsonl:9"])
    assert life.fail(failure, False, 5, POLICY).change is Change.FAILED
    assert life.error_problems == ["train.jsonl:3", "train.jsonl:9"]
    assert life.error_message == "two rows lack an output"


def test_a_crash_while_stopping_ends_as_stopped_and_says_why() -> None:
    life = running()
    life.stop(False, 0)
    assert life.fail(CRASH, True, 5, POLICY).change is Change.STOPPED
    assert (life.state, life.error_reason) == (State.STOPPED, "CRASHED")


def test_releasing_costs_nothing() -> None:
    life = running()
    for attempt in range(2, 9):
        assert life.release(0) == Outcome(Change.RETRIED, 0.0, AttemptEnd.RELEASED)
        assert life.claim(attempt, "w1", 0, POLICY).refusal is None
    assert life.failures == 0


def test_releasing_while_stopping_ends_as_stopped() -> None:
    life = running()
    life.stop(False, 0)
    assert life.release(3).change is Change.STOPPED


def test_a_lost_attempt_that_had_completed_counts_while_no_other_has_begun() -> None:
    life = running()
    life.lose(CRASH, 0, POLICY)
    assert life.complete(4) == Outcome()
    assert life.complete(4, attempt_was_lost=True).change is Change.COMPLETED
    assert life.claim(2, "w2", 5, POLICY).refusal is Refusal.ENDED


def test_resuming_begins_a_new_run_with_new_attempts() -> None:
    life = running()
    life.fail(CRASH, False, 5, POLICY)
    outcome = life.resume(0, 250, False)
    assert outcome == Outcome(Change.RESUMED, 0.0)
    assert (life.state, life.run, life.failures, life.error_reason) == (State.PENDING, 2, 0, "")
    assert (life.start_time, life.end_time, life.checkpoint_high) == (0, 0, 250)
    assert life.claim(1, "w1", 0, POLICY).refusal is Refusal.STALE
    assert life.claim(2, "w1", 0, POLICY).refusal is None


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.STOPPING, State.COMPLETED])
def test_only_stopped_and_failed_tasks_can_be_resumed(state: State) -> None:
    with pytest.raises(NotAllowed, match="only a STOPPED or FAILED"):
        Lifecycle(state=state).resume(0, 0, False)


def test_a_task_stopped_before_it_was_claimed_gets_a_message_of_its_own_when_resumed() -> None:
    life = Lifecycle()
    life.stop(False, 0)
    life.resume(0, 0, False)
    assert life.claim(1, "w1", 0, POLICY).refusal is Refusal.STALE
    assert life.claim(2, "w1", 0, POLICY).refusal is None


def test_a_running_task_is_deleted_by_force_only() -> None:
    life = running()
    with pytest.raises(NotAllowed, match="stop it first"):
        life.delete(False, 0)
    assert life.delete(True, 9) == Outcome(Change.DELETED, attempt_end=AttemptEnd.DELETED)
    assert life.heartbeat(1, "w1", 1, 10) is Directive.ABANDON
    assert life.claim(1, "w1", 10, POLICY).refusal is Refusal.ENDED


def test_a_waiting_task_follows_those_it_depends_on() -> None:
    life = Lifecycle(blocked=True)
    assert life.unblock() == Outcome(dispatch_after=0.0)
    assert life.unblock() == Outcome()
    waiting = Lifecycle(blocked=True)
    assert waiting.dependency_failed(dependency_failed("x", "failed"), 3).change is Change.FAILED
    assert (waiting.state, waiting.error_reason, waiting.blocked) == (State.FAILED, "DEPENDENCY_FAILED", False)


def test_a_message_that_nobody_could_take_counts_as_an_attempt() -> None:
    life = Lifecycle()
    failure = Failure("UNDELIVERABLE", "no worker could take the message")
    assert life.undeliverable(1, failure, 0, POLICY) == Outcome(Change.RETRIED, 1.0, None, "UNDELIVERABLE")
    assert life.undeliverable(1, failure, 0, POLICY) == Outcome()
    assert life.undeliverable(2, failure, 0, POLICY).dispatch_after == 2.0
    assert life.undeliverable(3, failure, 0, POLICY).change is Change.FAILED


def test_backoff_doubles_up_to_its_limit() -> None:
    assert [POLICY.backoff(failures) for failures in (1, 2, 3, 6, 7, 1000)] == [1, 2, 4, 32, 60, 60]
