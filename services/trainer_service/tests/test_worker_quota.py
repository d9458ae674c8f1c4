"""Quotas at the worker (M21): what is left is followed, what is spent is held back, and nothing trained is lost."""

from pathlib import Path
from typing import Any, cast

import pytest

from services.trainer_service.tests.bench import Bench, MakeSpec, open_gate
from services.workerkit.tests.desk import Desk, payloads
from tests.support.waiting import eventually
from trainer_service.worker.allowance import SETTLED_SECONDS, Allowance
from trainer_service.worker.quota import QuotaGate
from tunesmith.task.v1 import quota_service_pb2, spec_pb2, task_pb2, task_service_pb2
from workerkit.intent import Control, Intent, StopReason
from workerkit.reporter import Reporter
from workerkit.supervision import Patience

CONTINUE, STOP = quota_service_pb2.QUOTA_ACTION_CONTINUE_UNSAVED, quota_service_pb2.QUOTA_ACTION_STOP


def left(remaining: int, action: int = CONTINUE) -> task_service_pb2.CheckpointAllowance:
    return task_service_pb2.CheckpointAllowance(remaining=remaining, exhausted_action=action)  # type: ignore[arg-type]


def answer(remaining: int) -> task_service_pb2.HeartbeatTaskResponse:
    return task_service_pb2.HeartbeatTaskResponse(allowance=left(remaining))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_task_service_that_knows_no_quotas_limits_nothing(clock: Clock) -> None:
    allowance = Allowance(None, clock=clock)
    allowance.stored()
    allowance.heard(task_service_pb2.HeartbeatTaskResponse(), clock())
    assert allowance.allows(10_000)


def test_what_waits_for_its_upload_counts(clock: Clock) -> None:
    allowance = Allowance(left(2), clock=clock)
    assert [allowance.allows(waiting) for waiting in (0, 1, 2)] == [True, True, False]
    allowance.stored()
    assert [allowance.allows(waiting) for waiting in (0, 1)] == [True, False]


def test_the_task_service_may_not_have_counted_the_last_one_yet(clock: Clock) -> None:
    allowance = Allowance(left(1), clock=clock)
    allowance.stored()
    allowance.heard(answer(1), clock())
    assert not allowance.allows()
    clock.now += SETTLED_SECONDS
    allowance.heard(answer(1), clock())
    assert allowance.allows(), "by now it would have counted it: the quota was raised"


def test_others_checkpoints_and_limits_are_heard_of_at_once(clock: Clock) -> None:
    allowance = Allowance(left(5), clock=clock)
    allowance.stored()
    allowance.heard(answer(0), clock())
    assert not allowance.allows()
    allowance.heard(answer(-1), clock())
    assert allowance.allows(99)
    allowance.heard(answer(0), clock())
    assert not allowance.allows()


def test_a_users_stop_needs_no_reason() -> None:
    reason = StopReason("QUOTA_EXHAUSTED", "spent")
    control = Control()
    control.ask(Intent.STOP_AND_SAVE, reason)
    assert control.stop_reason is reason
    control.ask(Intent.GO_ON)
    assert control.stop_reason is reason
    control.ask(Intent.STOP_AND_SAVE)
    control.ask(Intent.STOP_AND_SAVE, reason)
    assert control.stop_reason is None


class Listener:
    """Hears what a reporter would tell."""

    def __init__(self, total_steps: int) -> None:
        self.progress = task_pb2.Progress(total_steps=total_steps)
        self.lines: list[str] = []

    def log(self, lines: list[str]) -> None:
        self.lines += lines


def test_the_last_steps_checkpoint_stops_nothing(clock: Clock) -> None:
    control, listener = Control(), Listener(total_steps=4)
    gate = QuotaGate(Allowance(left(0, STOP), clock=clock), control, cast(Reporter, listener))
    assert not gate.admits(4, 0)
    assert control.intent is Intent.GO_ON
    assert listener.lines == [
        "warning: the checkpoint quota is spent, checkpoint-4 is not stored; the finished model is"
    ]
    assert not gate.admits(3, 0)
    assert control.intent is Intent.STOP_AND_SAVE
    assert gate.admits(3, 0), "what a stop saves is stored"
    assert len(listener.lines) == 1


async def submitted(desk: Desk, spec: spec_pb2.FinetuneSpec, allowance: task_service_pb2.CheckpointAllowance) -> str:
    """A task whose owner has something left."""
    spec.training.save_strategy = spec_pb2.INTERVAL_STRATEGY_STEPS
    dispatch = desk.dispatch

    async def with_allowance(task_id: str) -> None:
        desk.records[task_id].allowance = allowance
        desk.dispatch = dispatch  # type: ignore[method-assign]
        await dispatch(task_id)

    desk.dispatch = with_allowance  # type: ignore[method-assign]
    return await desk.submit(spec)


def steps(received: list[Any]) -> list[int]:
    return sorted(checkpoint.step for checkpoint in payloads(received, "checkpoint_saved"))


async def warnings(desk: Desk, task_id: str) -> list[str]:
    return [line for line in await desk.log(task_id) if "quota" in line]


async def test_training_goes_on_unsaved_and_the_model_is_kept(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    spec = make_spec({"steps": 9, "save_steps": 2, "gates": {"3": "one", "5": "two", "7": "three"}})
    task_id = await submitted(desk, spec, left(2))
    async with bench.worker() as worker:
        await desk.facts_until(task_id, "checkpoint_saved")
        open_gate(spec, "one")
        await desk.facts_until(task_id, "checkpoint_saved")
        open_gate(spec, "two")
        await desk.trained_to(task_id, 7)
        local = worker.scratch / f"{task_id}-1" / "checkpoints"
        await eventually(lambda: [path.name for path in local.iterdir()] == ["checkpoint-6"], what="older ones to go")
        open_gate(spec, "three")
        received = await desk.facts_until(task_id, "completed")
    assert steps(received) == [2, 4]
    output = Path(payloads(received, "completed")[0].output_dir)
    assert (output / "model.safetensors").read_text() == "trained to 9"
    (warning,) = await warnings(desk, task_id)
    assert warning.startswith("warning: ")
    assert "checkpoint-6 is not stored" in warning


async def test_a_task_is_stopped_with_one_last_checkpoint(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    spec = make_spec({"steps": 100, "save_steps": 2, "gates": {"3": "go", "5": "never"}})
    task_id = await submitted(desk, spec, left(1, STOP))
    async with bench.worker():
        await desk.facts_until(task_id, "checkpoint_saved")
        open_gate(spec, "go")
        received = await desk.facts_until(task_id, "stopped")
    assert len(steps(received)) == 2
    (stopped,) = payloads(received, "stopped")
    assert (stopped.checkpoint_step, stopped.error.reason) == (steps(received)[-1], "QUOTA_EXHAUSTED")
    assert "new month" in stopped.error.message
    assert any("one last checkpoint" in line for line in await warnings(desk, task_id))


async def test_a_child_that_cannot_save_again_leaves_the_one_held_back(
    bench: Bench, desk: Desk, make_spec: MakeSpec
) -> None:
    bench.patience = Patience(stall_seconds=30.0, grace_seconds=0.3)
    spec = make_spec({"steps": 100, "save_steps": 3, "deaf": True, "gates": {"3": "go", "7": "never"}})
    task_id = await submitted(desk, spec, left(1, STOP))
    async with bench.worker():
        await desk.facts_until(task_id, "checkpoint_saved")
        open_gate(spec, "go")
        received = await desk.facts_until(task_id, "stopped")
    assert steps(received) == [3, 6]
    (stopped,) = payloads(received, "stopped")
    assert (stopped.checkpoint_step, stopped.error.reason) == (6, "QUOTA_EXHAUSTED")


async def test_a_complete_training_is_not_stopped(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    task_id = await submitted(desk, make_spec({"steps": 4, "save_steps": 2}), left(1, STOP))
    async with bench.worker():
        received = await desk.facts_until(task_id, "completed")
    assert steps(received) == [2]


async def test_nothing_begins_that_would_be_stopped_at_once(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    task_id = await submitted(desk, make_spec({"steps": 4, "save_steps": 2}), left(0, STOP))
    async with bench.worker():
        received = await desk.facts_until(task_id, "stopped")
    assert not payloads(received, "child_started")
    assert payloads(received, "stopped")[0].error.reason == "QUOTA_EXHAUSTED"


async def test_a_task_that_was_given_back_goes_on_to_its_next_checkpoint(
    bench: Bench, desk: Desk, make_spec: MakeSpec
) -> None:
    """A leaving worker does not make a task end earlier than its quota does."""
    spec = make_spec({"steps": 100, "save_steps": 4, "gates": {"2": "never", "9": "never"}})
    task_id = await submitted(desk, spec, left(1, STOP))
    async with bench.worker() as worker:
        await desk.trained_to(task_id, 2)
        worker.stop.set()
        released = await desk.facts_until(task_id, "released")
    (saved,) = payloads(released, "checkpoint_saved")
    desk.records[task_id].resume_from = [saved]
    desk.records[task_id].allowance = left(0, STOP)
    await desk.dispatch(task_id)
    async with bench.worker():
        received = await desk.facts_until(task_id, "stopped")
    assert steps(received)[-1] >= 4
    assert payloads(received, "stopped")[0].error.reason == "QUOTA_EXHAUSTED"


@pytest.mark.parametrize("why", ["stop", "release"])
async def test_what_a_stop_saves_is_stored_whatever_is_left(
    bench: Bench, desk: Desk, make_spec: MakeSpec, why: str
) -> None:
    """The child has just written the checkpoint of this very step, and it was held back."""
    spec = make_spec({"steps": 100, "save_steps": 4, "gates": {"4": "never"}})
    task_id = await submitted(desk, spec, left(0))
    async with bench.worker() as worker:
        await desk.trained_to(task_id, 4)
        local = worker.scratch / f"{task_id}-1" / "checkpoints"
        await eventually(lambda: local.exists() and [path.name for path in local.iterdir()] == ["checkpoint-4"])
        if why == "stop":
            await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_SAVE)
        else:
            worker.stop.set()
        received = await desk.facts_until(task_id, "stopped" if why == "stop" else "released")
    assert steps(received)
    assert steps(received)[-1] >= 4
    if why == "stop":
        assert payloads(received, "stopped")[0].checkpoint_step == steps(received)[-1]
        assert not payloads(received, "stopped")[0].HasField("error")


async def test_a_raised_quota_is_used_again(
    bench: Bench, desk: Desk, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec({"steps": 8, "save_steps": 2, "gates": {"3": "go", "5": "on"}})
    task_id = await submitted(desk, spec, left(0))
    async with bench.worker(extend_every=0.05):
        await desk.trained_to(task_id, 3)
        desk.records[task_id].allowance = left(5)
        beats = desk.records[task_id].heartbeats
        await eventually(lambda: desk.records[task_id].heartbeats > beats + 1)
        open_gate(spec, "go")
        open_gate(spec, "on")
        received = await desk.facts_until(task_id, "completed")
    assert steps(received) == [4, 6, 8]
    assert any("stored again" in line for line in await warnings(desk, task_id))
