"""Attempts that are stopped, discarded or taken over while a child trains."""

from pathlib import Path

import pytest

from services.trainer_service.tests.bench import Bench, MakeSpec
from services.workerkit.tests.desk import Desk, Troubled, payloads
from tests.support.waiting import eventually
from tunesmith.task.v1 import task_service_pb2
from workerkit.supervision import Patience


async def test_stop_saves_first(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    task_id = await desk.submit(make_spec({"steps": 9, "gates": {"3": "never"}}))
    async with bench.worker():
        await desk.trained_to(task_id, 3)
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_SAVE)
        received = await desk.facts_until(task_id, "stopped")
        await desk.queue_is_empty(task_id)
    (saved,) = payloads(received, "checkpoint_saved")
    assert payloads(received, "stopped")[0].checkpoint_step == saved.step == 4
    assert "checkpoint-4 is stored" in (await desk.log(task_id))[-1]


async def test_discard_saves_nothing(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    task_id = await desk.submit(make_spec({"steps": 9, "gates": {"3": "never"}}))
    async with bench.worker():
        await desk.trained_to(task_id, 3)
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_DISCARD)
        received = await desk.facts_until(task_id, "stopped")
    assert not payloads(received, "checkpoint_saved")
    assert payloads(received, "stopped")[0].checkpoint_step == 0


@pytest.mark.parametrize("by_label", [False, True])
async def test_a_child_that_does_not_stop_is_killed_after_its_grace(
    bench: Bench, desk: Desk, make_spec: MakeSpec, by_label: bool
) -> None:
    bench.patience = Patience(stall_seconds=30, grace_seconds=3600 if by_label else 0.2)
    spec = make_spec({"steps": 9, "deaf": True, "gates": {"3": "never"}})
    task_id = await desk.submit(spec, {"stop_grace_seconds": "0.2"} if by_label else {})
    async with bench.worker():
        await desk.trained_to(task_id, 3)
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_SAVE)
        received = await desk.facts_until(task_id, "stopped")
    assert payloads(received, "stopped")[0].checkpoint_step == 0
    assert "SIGKILL" in "\n".join(await desk.log(task_id))


async def test_completion_wins_over_a_stop_that_comes_too_late(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    troubled = Troubled(bench.store)
    troubled.down = True
    task_id = await desk.submit(make_spec({"steps": 2}))
    async with bench.worker(troubled):
        await eventually(lambda: troubled.refused > 0)
        await desk.trained_to(task_id, 2)
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_SAVE)
        await eventually(lambda: task_service_pb2.DIRECTIVE_STOP_AND_SAVE in desk.records[task_id].answered)
        troubled.down = False
        received = await desk.facts_until(task_id, "completed")
    assert payloads(received, "completed")


async def test_an_abandoned_attempt_falls_silent(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    task_id = await desk.submit(make_spec({"steps": 9, "save_steps": 1, "gates": {"3": "never"}}))
    async with bench.worker() as worker:
        pid = await desk.trained_to(task_id, 3)
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_ABANDON)
        await eventually(lambda: not Path(f"/proc/{pid}").exists())
        await eventually(lambda: not any(worker.scratch.iterdir()))
        with pytest.raises(TimeoutError):
            await desk.facts_until(task_id, "failed", seconds=0.5)
        assert await desk.waiting_messages(task_id) == 1
