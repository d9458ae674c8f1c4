"""Whole attempts by a worker with a real queue, store and children that follow scripts."""

import hashlib
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from modelkit.checkpoints import verify
from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import Aborted, FailedPrecondition, Unavailable
from servicekit.objects import ObjectStore
from services.trainer_service.tests.bench import Bench, MakeSpec, open_gate
from services.workerkit.tests.desk import Desk, Troubled, payloads
from tests.support.nats import NatsServer
from tests.support.waiting import eventually
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit.supervision import Patience


async def queue_is_empty(desk: Desk, task_id: str) -> None:
    async def empty() -> bool:
        return await desk.waiting_messages(task_id) == 0

    await eventually(empty)


async def stored(store: ObjectStore, prefix: str) -> list[str]:
    return sorted([info.key.removeprefix(prefix) async for info in store.list(prefix)])


async def test_a_task_is_trained_and_told_of_from_start_to_end(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    task_id = await desk.submit(make_spec({"steps": 4, "save_steps": 2}))
    async with bench.worker() as worker:
        received = await desk.facts_until(task_id, "completed")
        await queue_is_empty(desk, task_id)
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


async def test_stop_saves_first(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    task_id = await desk.submit(make_spec({"steps": 9, "gates": {"3": "never"}}))
    async with bench.worker():
        await desk.trained_to(task_id, 3)
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_SAVE)
        received = await desk.facts_until(task_id, "stopped")
        await queue_is_empty(desk, task_id)
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


@pytest.mark.parametrize(
    ("actions", "reason", "words", "retryable"),
    [
        ([["exit", 3]], "CHILD_CRASHED", ["exit code 3", "leaving early"], True),
        ([["kill", signal.SIGKILL]], "CHILD_KILLED", ["signal 9 (SIGKILL)", "memory"], True),
        ([["kill", signal.SIGSEGV]], "CHILD_CRASHED", ["11 (SIGSEGV)"], True),
        ([["error", "LOSS_DIVERGED", False]], "LOSS_DIVERGED", ["it cannot go on"], False),
        ([["error", "OUT_OF_MEMORY", True]], "OUT_OF_MEMORY", ["it cannot go on"], True),
        ([["hang"]], "CHILD_STALLED", ["no sign of life for 1 s", "step 1"], True),
    ],
)
async def test_every_way_to_fail_says_why(
    bench: Bench,
    desk: Desk,
    make_spec: MakeSpec,
    actions: list[list[Any]],
    reason: str,
    words: list[str],
    retryable: bool,
) -> None:
    bench.patience = Patience(stall_seconds=1.0 if reason == "CHILD_STALLED" else 30.0, grace_seconds=5.0)
    task_id = await desk.submit(make_spec({"steps": 9, "save_steps": 1, "at": {"2": actions}}))
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
        await queue_is_empty(desk, task_id)
    (failed,) = payloads(received, "failed")
    assert failed.error.reason == reason
    assert failed.retryable is retryable
    assert all(word in failed.error.message for word in words), failed.error.message
    assert failed.error.message in "\n".join(await desk.log(task_id))
    assert [checkpoint.step for checkpoint in payloads(received, "checkpoint_saved")] == [1]


async def test_garbage_floods_and_odd_bytes_do_no_harm(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    actions = [
        *([["raw", line]] for line in ("not json", '{"type": "metrics"}', "[1]", '{"type": 5}', '{"type": "unknown"}')),
        [["raw", '{"type": "checkpoint", "step": 1, "path": "/etc"}']],
        [["raw", '{"type": "metrics", "step": 1, "values": {"loss": "much"}}']],
        [["raw", '{"type": "log", "text": "from \\ud800 an event"}']],
        [["raw", "x" * 3_000_000]],
        [["print", "progress 1\rprogress 2"]],
        [["print", "y" * 40_000]],
        [["print", "many", 3_000]],
        [["burst", 3_000]],
    ]
    task_id = await desk.submit(make_spec({"steps": 2, "at": {"1": [item for group in actions for item in group]}}))
    async with bench.worker():
        received = await desk.facts_until(task_id, "completed")
    log = await desk.log(task_id)
    assert len([line for line in log if line.startswith("unreadable event")]) >= 5
    assert any("outside the job's directory" in line and "/etc" in line for line in log)
    assert "from ? an event" in log
    assert "progress 2" in log
    assert not any("progress 1" in line for line in log)
    assert "".join(line for line in log if line.startswith("y")) == "y" * 40_000
    assert log.count("many") == 3_000
    points = [p for batch in payloads(received, "metrics") for p in batch.points if p.name == "burst"]
    assert [point.value for point in points] == list(range(3_000))
    assert max(len(batch.points) for batch in payloads(received, "metrics")) <= 500


async def test_bad_input_fails_once_with_every_problem(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec({}, base_model="/etc", output_dir="/usr/share/model")
    (Path(spec.dataset.path) / "train.jsonl").write_text(
        '{"instruction": "a", "output": "b"}\n{"question": "a"}\nnot json\n'
    )
    spec.devices.cuda_visible_devices = "63"
    spec.training.optim = "magic"
    spec.training.eval_strategy = spec_pb2.INTERVAL_STRATEGY_STEPS
    task_id = await desk.submit(spec)
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
    (failed,) = payloads(received, "failed")
    assert not failed.retryable
    assert failed.error.reason == "SPEC_INVALID"
    problems = "\n".join(failed.error.problems)
    for word in (
        "finetune.base_model: ",
        "finetune.output_dir: ",
        "finetune.training.optim: ",
        "finetune.training.eval_strategy: ",
        "1 line: 2",
        "1 line: 3",
        "there is no device 63",
    ):
        assert word in problems
    assert not payloads(received, "child_started")


async def test_what_this_version_cannot_train_is_refused_plainly(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    task_id = await desk.submit(
        make_spec({}, image_classifier=spec_pb2.ImageClassifierParameters(), language_model=None)
    )
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
    (failed,) = payloads(received, "failed")
    assert (failed.error.reason, failed.retryable) == ("MODALITY_NOT_AVAILABLE", False)


async def test_claims_that_are_refused(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    bench.redelivery_seconds = 0.9
    waiting, ended = await desk.submit(make_spec({})), await desk.submit(make_spec({}))
    desk.records[waiting].refuse_claims = [Aborted("held"), Aborted("held"), Unavailable("down")]
    desk.records[ended].refuse_claims = [FailedPrecondition("ended")]
    async with bench.worker():
        await queue_is_empty(desk, ended)
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
        await queue_is_empty(desk, "nonsense")
    kept = await bus.last_message(subjects.DEADLETTERS, subjects.deadletter(subject))
    assert kept is not None
    assert kept[1] == b"\xff\xff\xff"


async def test_training_goes_on_while_the_store_is_down(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    troubled = Troubled(bench.store)
    troubled.down = True
    task_id = await desk.submit(make_spec({"steps": 4, "save_steps": 1}))
    async with bench.worker(troubled):
        received = await desk.facts_until(task_id, "metrics")
        await eventually(lambda: troubled.refused >= 2)
        assert not payloads(received, "checkpoint_saved")
        troubled.down = False
        received = await desk.facts_until(task_id, "completed")
    assert sorted(checkpoint.step for checkpoint in payloads(received, "checkpoint_saved")) == [1, 2, 3, 4]
    assert any("is not stored yet, trying again" in line for line in await desk.log(task_id))


async def test_nothing_shows_when_an_upload_is_cut(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    troubled = Troubled(bench.store, refuse="weights")
    troubled.down = True
    task_id = await desk.submit(make_spec({"steps": 2, "save_steps": 2, "after": [["hang"]]}))
    async with bench.worker(troubled):
        await eventually(lambda: troubled.refused >= 2)
        prefix = f"tasks/{task_id}/attempts/1/checkpoint-2/"
        assert "manifest.json" not in await stored(bench.store, prefix)
        troubled.down = False
        received = await desk.facts_until(task_id, "checkpoint_saved")
        assert "manifest.json" in await stored(bench.store, prefix)
        puts = troubled.puts.count(f"{prefix}state.txt")
        assert puts <= 1
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_DISCARD)
        await desk.facts_until(task_id, "stopped")
    assert len(payloads(received, "checkpoint_saved")) == 1


async def test_surplus_checkpoints_are_not_uploaded_after_an_outage(
    bench: Bench, desk: Desk, make_spec: MakeSpec
) -> None:
    troubled = Troubled(bench.store)
    troubled.down = True
    spec = make_spec({"steps": 5, "save_steps": 1})
    spec.training.save_total_limit = 2
    task_id = await desk.submit(spec)
    async with bench.worker(troubled):
        await eventually(lambda: troubled.refused >= 2)
        await desk.facts_until(task_id, "metrics")
        troubled.down = False
        received = await desk.facts_until(task_id, "completed")
    steps = sorted(checkpoint.step for checkpoint in payloads(received, "checkpoint_saved"))
    assert steps[-2:] == [4, 5]
    assert any("fill save_total_limit" in line for line in await desk.log(task_id)) == (len(steps) < 5)


async def test_of_stored_checkpoints_only_the_newest_stays_on_the_worker(
    bench: Bench, desk: Desk, make_spec: MakeSpec
) -> None:
    task_id = await desk.submit(make_spec({"steps": 4, "save_steps": 1, "after": [["hang"]]}))
    async with bench.worker() as worker:
        saved: set[int] = set()
        while saved != {1, 2, 3, 4}:
            received = await desk.facts_until(task_id, "checkpoint_saved")
            saved = {checkpoint.step for checkpoint in payloads(received, "checkpoint_saved")}
        folder = worker.scratch / f"{task_id}-1" / "checkpoints"
        await eventually(lambda: [path.name for path in folder.iterdir()] == ["checkpoint-4"])
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_DISCARD)
        await desk.facts_until(task_id, "stopped")


async def test_an_output_that_cannot_be_written_is_never_called_saved(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec({"steps": 1, "gates": {"1": "go"}}, output_dir=str(tmp_path / "outputs" / "sub" / "model"))
    task_id = await desk.submit(spec)
    async with bench.worker():
        await desk.facts_until(task_id, "metrics")
        bench.outputs.mkdir(exist_ok=True)
        (bench.outputs / "sub").write_text("a file in the way")
        open_gate(spec, "go")
        received = await desk.facts_until(task_id, "failed")
    (failed,) = payloads(received, "failed")
    assert failed.error.reason == "OUTPUT_NOT_WRITTEN"
    assert "sub" in failed.error.message


async def test_two_tasks_that_want_one_directory_both_keep_their_model(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    target = tmp_path / "outputs" / "shared"
    bench.slots = 2
    specs = [make_spec({"steps": n, "gates": {str(n): "go"}}, output_dir=str(target)) for n in (1, 2)]
    first, second = [await desk.submit(spec) for spec in specs]
    async with bench.worker():
        for task_id in (first, second):
            await desk.facts_until(task_id, "metrics")
        open_gate(specs[0], "go")
        done = payloads(await desk.facts_until(first, "completed"), "completed")
        open_gate(specs[1], "go")
        later = payloads(await desk.facts_until(second, "completed"), "completed")
    assert done[0].output_dir == str(target)
    assert (target / "model.safetensors").read_text() == "trained to 1"
    assert later[0].output_dir == f"{target}-{second}"
    assert (Path(later[0].output_dir) / "model.safetensors").read_text() == "trained to 2"
    assert any("holds other files by now" in line for line in await desk.log(second))


async def test_an_output_directory_in_use_is_refused_before_training(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    target = tmp_path / "outputs" / "taken"
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("mine")
    task_id = await desk.submit(make_spec({}, output_dir=str(target)))
    async with bench.worker():
        (failed,) = payloads(await desk.facts_until(task_id, "failed"), "failed")
    assert "is not empty" in failed.error.message
    assert (target / "thesis.txt").read_text() == "mine"


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
        await queue_is_empty(desk, task_id)
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
        await queue_is_empty(desk, task_id)
    assert [fact.sequence for fact in received] == list(range(1, len(received) + 1))
    points = [point for batch in payloads(received, "metrics") for point in batch.points if point.name == "loss"]
    assert [point.step for point in points] == list(range(1, 61))
    assert [line for line in await desk.log(task_id) if line.startswith("step")] == [f"step {n}" for n in range(1, 61)]
    await bus.close()
