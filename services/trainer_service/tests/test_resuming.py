"""Going on from checkpoints: verified before use, passed over when damaged, and nothing trained twice at the end."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from servicekit.objects import ObjectStore
from services.trainer_service.tests.bench import Bench, MakeSpec
from services.workerkit.tests.desk import Desk, Troubled, payloads
from tests.support.waiting import eventually
from tunesmith.task.v1 import task_pb2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = {"truncated": truncate, "flipped": flip_a_bit, "removed": remove}
FILES = ("nested/weights.safetensors", "state.txt", "manifest.json")


@dataclass
class Crashed:
    """A task whose first attempt stored checkpoints 2 and 4 and crashed at step 5."""

    task_id: str
    desk: Desk
    objects: Path
    saved: list[task_pb2.Checkpoint]

    def path(self, step: int, file: str) -> Path:
        return self.objects / "tasks" / self.task_id / "attempts" / "1" / f"checkpoint-{step}" / file

    async def again(self, *, exact: bool = False) -> None:
        record = self.desk.records[self.task_id]
        record.resume_from = sorted(self.saved, key=lambda checkpoint: -checkpoint.step)
        record.resume_exact = exact
        record.task.progress.step = 5
        await self.desk.dispatch(self.task_id)


@pytest.fixture
async def crashed(bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path) -> AsyncIterator[Crashed]:
    spec = make_spec({"steps": 6, "save_steps": 2, "at": {"5": [["first_exit", 1]]}})
    task_id = await desk.submit(spec)
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
        saved = payloads(received, "checkpoint_saved")
        assert sorted(checkpoint.step for checkpoint in saved) == [2, 4]
        received.clear()
        yield Crashed(task_id, desk, tmp_path / "objects", saved)


async def test_the_newest_checkpoint_is_used(crashed: Crashed, desk: Desk) -> None:
    await crashed.again()
    received = await desk.facts_until(crashed.task_id, "completed")
    assert payloads(received, "child_started")[0].resumed_step == 4
    assert payloads(received, "progressed")[0].step == 5
    assert {fact.attempt for fact in received} == {2}
    steps = [point.step for batch in payloads(received, "metrics") for point in batch.points if point.name == "loss"]
    assert steps == [5, 6]
    log = await desk.log(crashed.task_id, 2)
    assert "going on from checkpoint-4 of attempt 1, verified" in log
    assert [line for line in log if line.startswith("step")] == ["step 5", "step 6"]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", FILES)
async def test_a_damaged_checkpoint_is_passed_over_and_named(
    crashed: Crashed, desk: Desk, damage: Callable[[Path], None], file: str
) -> None:
    damage(crashed.path(4, file))
    await crashed.again()
    received = await desk.facts_until(crashed.task_id, "completed")
    (rejected,) = payloads(received, "checkpoint_rejected")
    assert rejected.step == 4
    assert rejected.prefix.endswith("checkpoint-4")
    assert file in rejected.reason
    assert payloads(received, "child_started")[0].resumed_step == 2
    log = "\n".join(await desk.log(crashed.task_id, 2))
    assert f"checkpoint-4 of attempt 1 is damaged: {file}" in log


async def test_when_all_are_damaged_it_fails_and_keeps_them(crashed: Crashed, desk: Desk) -> None:
    flip_a_bit(crashed.path(4, "state.txt"))
    truncate(crashed.path(2, "nested/weights.safetensors"))
    await crashed.again()
    received = await desk.facts_until(crashed.task_id, "failed")
    (failed,) = payloads(received, "failed")
    assert (failed.error.reason, failed.retryable) == ("CHECKPOINT_DAMAGED", False)
    assert "checkpoint-4" in failed.error.message
    assert "state.txt" in failed.error.message
    assert len(failed.error.problems) == 2
    assert [rejected.step for rejected in payloads(received, "checkpoint_rejected")] == [4, 2]
    assert not payloads(received, "child_started")
    assert crashed.path(4, "manifest.json").exists()


async def test_a_named_checkpoint_is_never_replaced_by_another(crashed: Crashed, desk: Desk) -> None:
    flip_a_bit(crashed.path(4, "nested/weights.safetensors"))
    await crashed.again(exact=True)
    (failed,) = payloads(await desk.facts_until(crashed.task_id, "failed"), "failed")
    assert not failed.retryable
    assert "nested/weights.safetensors" in failed.error.message


async def test_a_store_that_is_away_is_waited_for_and_condemns_nothing(
    bench: Bench, desk: Desk, make_spec: MakeSpec, store: ObjectStore
) -> None:
    spec = make_spec({"steps": 4, "save_steps": 2, "at": {"3": [["first_exit", 1]]}})
    task_id = await desk.submit(spec)
    troubled = Troubled(store)
    async with bench.worker(troubled):
        received = await desk.facts_until(task_id, "failed")
        desk.records[task_id].resume_from = payloads(received, "checkpoint_saved")
        troubled.down = True
        await desk.dispatch(task_id)
        await eventually(lambda: troubled.refused >= 2)
        troubled.down = False
        received = await desk.facts_until(task_id, "completed")
    assert not payloads(received, "checkpoint_rejected")
    assert any("the object store does not answer" in line for line in await desk.log(task_id, 2))


@pytest.mark.parametrize("placed", [False, True])
async def test_what_died_before_it_was_told_is_finished_not_trained_again(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path, placed: bool
) -> None:
    """The worker dies after the last checkpoint was stored, before or after the model had its final name."""
    target = tmp_path / "outputs" / "model"
    spec = make_spec({"steps": 4}, output_dir=str(target))
    task_id = await desk.submit(spec)
    async with bench.worker():
        received = await desk.facts_until(task_id, "completed")
    if not placed:
        for path in sorted(target.rglob("*"), reverse=True):
            path.unlink()
        target.rmdir()
    record = desk.records[task_id]
    record.resume_from = payloads(received, "checkpoint_saved")
    received.clear()
    await desk.dispatch(task_id)
    async with bench.worker():
        received = await desk.facts_until(task_id, "completed")
    assert payloads(received, "child_started")[0].resumed_step == 4
    assert not [point for batch in payloads(received, "metrics") for point in batch.points if point.name == "loss"]
    (completed,) = payloads(received, "completed")
    assert completed.output_prefix == f"tasks/{task_id}/attempts/2/output"
    assert completed.output_dir == str(target)
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "model.safetensors").read_text() == "trained to 4"
    assert "going on from checkpoint-4" in "\n".join(await desk.log(task_id, 2))


async def test_the_output_of_another_task_as_base_model(
    bench: Bench, desk: Desk, make_spec: MakeSpec, model: Path, store: ObjectStore
) -> None:
    from workerkit.artifacts import Origin, Upload

    async def held() -> None:
        """No lease is needed."""

    origin = Origin("first", 1, 1, "m")
    stored = await Upload(store, origin, "output", model, step=1, ensure=held).run()
    adapter = model.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_text("")
    other = await Upload(store, Origin("second", 1, 1, "m"), "output", adapter, step=1, ensure=held).run()
    cases = {
        "task:first": (stored.prefix, "completed"),
        "task:second": (other.prefix, "failed"),
        "task:third": ("", "failed"),
    }
    answers = {}
    async with bench.worker():
        for name, (prefix, end) in cases.items():
            task_id = await desk.submit(make_spec({"steps": 1}, base_model=name))
            if prefix:
                desk.records[task_id].dependency_outputs[name.removeprefix("task:")] = prefix
            answers[name] = await desk.facts_until(task_id, end)
    assert "holds an adapter" in payloads(answers["task:second"], "failed")[0].error.message
    assert "depends on" in payloads(answers["task:third"], "failed")[0].error.message


async def test_stopping_while_a_checkpoint_cannot_be_fetched(
    bench: Bench, desk: Desk, make_spec: MakeSpec, store: ObjectStore
) -> None:
    troubled = Troubled(store)
    troubled.down = True
    task_id = await desk.submit(make_spec({}))
    desk.records[task_id].resume_from = [task_pb2.Checkpoint(task_id=task_id, attempt=1, step=2, prefix="tasks/x/c")]
    async with bench.worker(troubled):
        await eventually(lambda: troubled.refused >= 1)
        await desk.steer(task_id, 2)
        received = await desk.facts_until(task_id, "stopped")
    assert not payloads(received, "child_started")
