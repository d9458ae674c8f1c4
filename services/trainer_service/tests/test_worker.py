"""Whole attempts by a worker with a real queue, store and children that follow scripts."""

import hashlib
import math
import os
import signal
from pathlib import Path

import pytest

from modelkit.checkpoints import verify
from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import Aborted, FailedPrecondition, Unavailable
from services.trainer_service.tests.bench import Bench, MakeSpec, open_gate
from services.workerkit.tests.desk import Desk, payloads, stored
from tests.support.nats import NatsServer
from tests.support.waiting import eventually


async def test_a_task_is_trained_and_told_of_from_start_to_end(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    task_id = await desk.submit(make_spec({"steps": 4, "save_steps": 2}))
    async with bench.worker() as worker:
        received = await desk.facts_until(task_id, "completed")
        await desk.queue_is_empty(task_id)
        await eventually(lambda: not any(worker.scratch.iterdir()))
    assert [fact.sequence for fact in received] == list(range(1, len(received) + 1))
    assert {fact.attempt for fact in received} == {1}
    (started,) = payloads(received, "child_started")
    assert started.pid > 1
    assert started.resumed_step == 0
    points = [point for batch in payloads(received, "metrics") for point in batch.points]
    assert [(p.step, p.value) for p in points if p.name == "loss"] == [(n, 1 / n) for n in range(1, 5)]
    assert all(math.isnan(point.value) for point in points if point.name == "grad_norm")
    phases = list(dict.fromkeys(progress.phase for progress in payloads(received, "progressed")))
    expected = ["checking model and data", "starting", "training", "storing the model", "done"]
    assert phases == [phase for phase in expected if phase in phases]
    assert phases[0] == expected[0]
    assert phases[-1] == expected[-1]
    (completed,) = payloads(received, "completed")
    assert (completed.progress.step, completed.progress.percent) == (4, 100)
    output = Path(completed.output_dir)
    assert output == bench.outputs / task_id
    assert (output / "model.safetensors").read_text() == "trained to 4"
    assert verify(output).step == 4
    assert hashlib.sha256((output / "manifest.json").read_bytes()).hexdigest() == completed.manifest_sha256
    assert (
        await bench.store.get_bytes(f"{completed.output_prefix}/manifest.json")
        == (output / "manifest.json").read_bytes()
    )
    log = await desk.log(task_id)
    assert [line for line in log if line.startswith("step")] == [f"step {n}" for n in range(1, 5)]
    assert str(output) in log[-1]
    assert list(bench.outputs.iterdir()) == [output]


async def test_checkpoints_are_stored_with_their_manifest_last(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    spec = make_spec({"steps": 5, "save_steps": 2, "gates": {"5": "go"}})
    task_id = await desk.submit(spec)
    async with bench.worker() as worker:
        await desk.facts_until(task_id, "checkpoint_saved")
        received = await desk.facts_until(task_id, "checkpoint_saved")
        local = worker.scratch / f"{task_id}-1" / "checkpoints"
        await eventually(lambda: [path.name for path in local.iterdir()] == ["checkpoint-4"])
        open_gate(spec, "go")
        received = await desk.facts_until(task_id, "completed")
    saved = payloads(received, "checkpoint_saved")
    assert sorted(checkpoint.step for checkpoint in saved) == [2, 4, 5]
    for checkpoint in saved:
        assert checkpoint.prefix == f"tasks/{task_id}/attempts/1/checkpoint-{checkpoint.step}"
        assert (checkpoint.task_id, checkpoint.attempt, checkpoint.run) == (task_id, 1, 1)
        assert checkpoint.loss == pytest.approx(1 / checkpoint.step)
        assert await stored(bench.store, f"{checkpoint.prefix}/") == [
            "manifest.json",
            "nested/weights.safetensors",
            "state.txt",
        ]
        manifest = await bench.store.get_bytes(f"{checkpoint.prefix}/manifest.json")
        assert hashlib.sha256(manifest).hexdigest() == checkpoint.manifest_sha256
        assert checkpoint.size == 100_001
        written = {
            key: (await bench.store.stat(f"{checkpoint.prefix}/{key}")) for key in ("manifest.json", "state.txt")
        }
        assert written["manifest.json"].modified >= written["state.txt"].modified


async def test_claims_that_are_refused(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    bench.redelivery_seconds = 0.9
    waiting, ended = await desk.submit(make_spec({})), await desk.submit(make_spec({}))
    desk.records[waiting].refuse_claims = [Aborted("held"), Aborted("held"), Unavailable("down")]
    desk.records[ended].refuse_claims = [FailedPrecondition("ended")]
    async with bench.worker():
        await desk.queue_is_empty(ended)
        assert desk.records[ended].claims == 1
        await desk.facts_until(waiting, "completed")


async def test_a_message_that_is_none_is_kept_for_the_operator(
    bench: Bench, desk: Desk, make_spec: MakeSpec, bus: EventBus
) -> None:
    subject = subjects.work("finetune", desk.pool, "nonsense")
    await bus.publish(subject, b"\xff\xff\xff")
    task_id = await desk.submit(make_spec({}))
    async with bench.worker():
        await desk.facts_until(task_id, "completed")
        await desk.queue_is_empty("nonsense")
    kept = await bus.last_message(subjects.DEADLETTERS, subjects.deadletter(subject))
    assert kept is not None
    assert kept[1] == b"\xff\xff\xff"


async def test_the_death_of_the_fork_server_is_a_crash_like_any_other(
    bench: Bench, desk: Desk, make_spec: MakeSpec
) -> None:
    spec = make_spec({"steps": 4, "save_steps": 2, "gates": {"3": "go"}})
    task_id = await desk.submit(spec)
    async with bench.worker() as worker:
        received = await desk.facts_until(task_id, "checkpoint_saved")
        assert worker.launcher.pid is not None
        os.kill(worker.launcher.pid, signal.SIGKILL)
        received = await desk.facts_until(task_id, "failed")
        (failed,) = payloads(received, "failed")
        assert (failed.error.reason, failed.retryable) == ("CHILD_KILLED", True)
        assert "fork server" in failed.error.message
        open_gate(spec, "go")
        desk.records[task_id].resume_from = payloads(received, "checkpoint_saved")
        await desk.dispatch(task_id)
        received = await desk.facts_until(task_id, "completed")
    assert payloads(received, "child_started")[-1].resumed_step == 2


async def test_a_message_delivered_twice_is_worked_on_once(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    """The broker has not heard in time that the worker is still at it."""
    bench.slots, bench.redelivery_seconds, desk.lease_seconds = 2, 0.3, 60.0
    spec = make_spec({"steps": 3, "gates": {"2": "go"}})
    task_id = await desk.submit(spec)
    async with bench.worker(extend_every=60.0) as worker:
        await desk.facts_until(task_id, "metrics")
        await eventually(lambda: worker.deliveries.count(task_id) >= 3)
        open_gate(spec, "go")
        await desk.facts_until(task_id, "completed")
        await desk.queue_is_empty(task_id)
    assert desk.records[task_id].claims == 1


async def test_a_broker_killed_in_the_middle_loses_nothing(
    bench: Bench, nats_server: NatsServer, make_spec: MakeSpec, desk_port: int, desk: Desk
) -> None:
    bus = await EventBus.connect(nats_server.url, name="desk")
    await bus.ensure_streams()
    desk.bus, bench.nats_url = bus, nats_server.url
    spec = make_spec({"steps": 60, "save_steps": 20, "gates": {"20": "go", "40": "on"}})
    task_id = await desk.submit(spec)
    async with bench.worker():
        await desk.facts_until(task_id, "metrics")
        nats_server.kill()
        open_gate(spec, "go")
        await eventually(lambda: list((bench.root / "objects").rglob("checkpoint-40/manifest.json")))
        nats_server.restart()
        open_gate(spec, "on")
        received = await desk.facts_until(task_id, "completed", 40)
        await desk.queue_is_empty(task_id)
    assert [fact.sequence for fact in received] == list(range(1, len(received) + 1))
    points = [point for batch in payloads(received, "metrics") for point in batch.points if point.name == "loss"]
    assert [point.step for point in points] == list(range(1, 61))
    assert [line for line in await desk.log(task_id) if line.startswith("step")] == [f"step {n}" for n in range(1, 61)]
    await bus.close()
