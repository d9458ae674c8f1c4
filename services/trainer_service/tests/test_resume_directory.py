"""Going on from a checkpoint that the task names (C39, M27): whole and verified, below a root or in the store."""

import json
import shutil
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from modelkit.base_models import BaseModels
from modelkit.checkpoints import write_manifest
from modelkit.datasets import DataCache
from modelkit.identity import BASE_NAME, BASE_SHA256, ORIGIN, STATE, weights_sha256
from modelkit.paths import AllowedRoots
from servicekit.objects import ObjectStore
from services.trainer_service.tests.bench import Bench, MakeSpec
from services.workerkit.tests.desk import Desk, payloads
from trainer_service.checks import SpecChecks
from trainer_service.recipes.checkpoint_files import STATES, missing_from, step_of
from trainer_service.recipes.config import Finetune
from trainer_service.recipes.identity import parameters_of
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1 import task_pb2 as tasks
from workerkit.artifacts import Origin, Upload
from workerkit.datasets import DatasetChecks

FIELD = "finetune.resume_from_checkpoint"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint of step 2, without a manifest."""
    folder = tmp_path / "data" / "checkpoint-2"
    folder.mkdir(parents=True)
    for name in (*STATES, "model.safetensors"):
        (folder / name).write_text(name)
    (folder / "state.txt").write_text("2")
    return folder


@pytest.fixture
def checks(tmp_path: Path) -> SpecChecks:
    roots = AllowedRoots([tmp_path / "data"])
    return SpecChecks(roots, BaseModels(roots), DatasetChecks(DataCache(tmp_path / "cache")))


def problems(checks: SpecChecks, spec: spec_pb2.FinetuneSpec) -> list[str]:
    found = checks.check(spec_pb2.TaskSpec(finetune=spec)).problems
    return [problem.message for problem in found if problem.field == FIELD]


def test_only_whole_checkpoints_below_a_root_are_accepted(
    checks: SpecChecks, make_spec: MakeSpec, checkpoint: Path, tmp_path: Path
) -> None:
    spec = make_spec({}, resume_from_checkpoint=str(checkpoint))
    assert problems(checks, spec) == []
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, elsewhere)
    (message,) = problems(checks, make_spec({}, resume_from_checkpoint=str(elsewhere)))
    assert "elsewhere" in message
    (checkpoint / "rng_state.pt").unlink()
    (checkpoint / "rng_state.pt").symlink_to(elsewhere / "rng_state.pt")
    (message,) = problems(checks, spec)
    assert message.startswith("rng_state.pt: links")
    (checkpoint / "rng_state.pt").unlink()
    (checkpoint / "model.safetensors").unlink()
    (message,) = problems(checks, spec)
    assert "it has no rng_state.pt, no adapter_model.safetensors or model.safetensors" in message
    assert missing_from(elsewhere) == []
    assert (step_of(checkpoint), step_of(elsewhere)) == (2, 0)


async def test_a_task_goes_on_from_the_directory_it_names(
    bench: Bench, desk: Desk, make_spec: MakeSpec, checkpoint: Path
) -> None:
    write_manifest(checkpoint, base_model="m", attempt=1, step=2)
    task_id = await desk.submit(make_spec({"steps": 4}, resume_from_checkpoint=str(checkpoint)))
    async with bench.worker():
        received = await desk.facts_until(task_id, "completed")
    assert payloads(received, "child_started")[0].resumed_step == 2
    assert f"going on from {checkpoint}, verified" in await desk.log(task_id)
    steps = [point.step for batch in payloads(received, "metrics") for point in batch.points if point.name == "loss"]
    assert steps == [3, 4]


async def test_a_directory_that_is_not_what_its_manifest_says_is_refused(
    bench: Bench, desk: Desk, make_spec: MakeSpec, checkpoint: Path
) -> None:
    write_manifest(checkpoint, base_model="m", attempt=1, step=2)
    (checkpoint / "optimizer.pt").write_text("optimizer.pT")
    task_id = await desk.submit(make_spec({}, resume_from_checkpoint=str(checkpoint)))
    async with bench.worker():
        (failed,) = payloads(await desk.facts_until(task_id, "failed"), "failed")
    assert (failed.error.reason, failed.retryable) == ("CHECKPOINT_DAMAGED", False)
    assert "optimizer.pt is damaged" in failed.error.message


async def test_what_the_task_saved_itself_comes_first(
    bench: Bench, desk: Desk, make_spec: MakeSpec, checkpoint: Path
) -> None:
    script = {"steps": 6, "save_steps": 4, "at": {"5": [["first_exit", 1]]}}
    task_id = await desk.submit(make_spec(script))
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
        record = desk.records[task_id]
        record.resume_from = payloads(received, "checkpoint_saved")
        record.task.spec.finetune.resume_from_checkpoint = str(checkpoint)
        received.clear()
        await desk.dispatch(task_id)
        received = await desk.facts_until(task_id, "completed")
    assert payloads(received, "child_started")[0].resumed_step == 4


async def test_a_stored_checkpoint_comes_with_the_claim(
    bench: Bench, desk: Desk, make_spec: MakeSpec, checks: SpecChecks, checkpoint: Path, store: ObjectStore
) -> None:
    """By the path that lists of checkpoints show; without it the training does not begin anew."""

    async def held() -> None:
        """No lease is needed."""

    stored = await Upload(store, Origin("first", 1, 1, "m"), "checkpoint-2", checkpoint, step=2, ensure=held).run()
    spec = make_spec({"steps": 4}, resume_from_checkpoint=stored.prefix)
    assert problems(checks, spec) == []
    named, gone = await desk.submit(spec), await desk.submit(spec)
    desk.records[named].resume_from = [tasks.Checkpoint(task_id="first", attempt=1, step=2, prefix=stored.prefix)]
    async with bench.worker():
        received = await desk.facts_until(named, "completed")
        (failed,) = payloads(await desk.facts_until(gone, "failed"), "failed")
    assert payloads(received, "child_started")[0].resumed_step == 2
    assert f"going on from {stored.prefix}, verified" in await desk.log(named)
    assert (failed.error.reason, stored.prefix in failed.error.message) == ("CHECKPOINT_MISSING", True)


async def test_a_damaged_checkpoint_of_another_task_is_not_told_as_the_tasks_own(
    bench: Bench, desk: Desk, make_spec: MakeSpec
) -> None:
    prefix = "tasks/first/attempts/1/checkpoint-2"
    task_id = await desk.submit(make_spec({"steps": 4}, resume_from_checkpoint=prefix))
    record = desk.records[task_id]
    record.resume_from = [tasks.Checkpoint(task_id="first", attempt=1, step=2, prefix=prefix)]
    record.resume_exact = True
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
    (failed,) = payloads(received, "failed")
    assert (failed.error.reason, prefix in failed.error.message) == ("CHECKPOINT_DAMAGED", True)
    assert not payloads(received, "checkpoint_rejected")


def test_a_checkpoint_of_another_training_is_refused_when_it_is_named(
    checks: SpecChecks, make_spec: MakeSpec, checkpoint: Path
) -> None:
    """Not when its task starts, after those before it in the queue; what may differ is told in the log then."""
    before = make_spec({})
    before.language_model.method = spec_pb2.METHOD_LORA
    parameters = parameters_of(Finetune.parse(MessageToDict(before, preserving_proto_field_name=True)))
    origin = {BASE_SHA256: weights_sha256(Path(before.base_model)), BASE_NAME: "m", "parameters": parameters}
    (checkpoint / STATE).write_text(json.dumps({ORIGIN: origin}))
    now = make_spec({}, resume_from_checkpoint=str(checkpoint))
    now.language_model.method = spec_pb2.METHOD_LORA
    now.training.learning_rate = 0.5
    assert problems(checks, now) == []
    now.language_model.lora.r = 16
    (message,) = problems(checks, now)
    assert message.endswith("is of another training: language_model.lora.r was 8 there and is 16 now")
    (checkpoint / STATE).write_text(json.dumps({ORIGIN: {**origin, BASE_SHA256: "another"}}))
    assert len(problems(checks, now)) == 2
