"""Checkpoints and models on their way to the store and to their directory, in good times and in bad ones."""

from pathlib import Path

from services.trainer_service.tests.bench import Bench, MakeSpec, open_gate
from services.workerkit.tests.desk import Desk, Troubled, payloads, stored
from tests.support.waiting import eventually
from tunesmith.task.v1 import task_service_pb2


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
