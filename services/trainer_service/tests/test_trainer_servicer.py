"""The gRPC service over the wire: devices, environment, models, data, specifications."""

import json
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache, DatasetFiles, locate
from modelkit.errors import InvalidDataset
from modelkit.errors import Problem as Refusal
from modelkit.paths import AllowedRoots
from servicekit.bus import EventBus
from servicekit.errors import InvalidArgument, Problem, Unavailable, Unimplemented
from servicekit.grpc_client import bearer, open_channel
from servicekit.grpc_server import running_server
from servicekit.objects import ObjectStore
from servicekit.settings import ServiceSettings
from services.trainer_service.tests.bench import JOBS, MakeSpec
from trainer_service.checks import SpecChecks
from trainer_service.data_questions import DataQuestions
from trainer_service.datasets import DatasetChecks
from trainer_service.devices import gpus
from trainer_service.environment import Environment
from trainer_service.estimates.calibration import Calibration
from trainer_service.estimates.disk import Places
from trainer_service.estimates.estimator import Estimator
from trainer_service.remote_datasets import RemoteDatasets
from trainer_service.servicer import TrainerServicer
from trainer_service.setup import NAME
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from tunesmith.trainer.v1 import trainer_service_pb2_grpc
from workerkit.fork_launcher import running_launcher

Stub = Any


class Peer:
    """The task service, as far as the environment check asks for it."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def ask(self) -> None:
        if self.error is not None:
            raise self.error


class Uploads(RemoteDatasets):
    """One uploaded dataset, which nobody but its owner may know of."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def uploaded(self, dataset_id: str, *, field: str, token: str = "") -> Path:
        if token != "owner":
            raise InvalidDataset(Refusal(field, f"there is no dataset {dataset_id!r}"))
        return self.file


class Unasked(DataQuestions):
    """Has no child look at tokens: the model of these tests has no tokenizer."""

    async def problems(self, *_: object) -> list[Problem]:
        return []


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def stub(
    tmp_path: Path, bus: EventBus, store: ObjectStore, peer: Peer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stub]:
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    await store.prepare()
    roots = AllowedRoots([tmp_path / "data"])
    models, uploads = BaseModels(roots), Uploads(tmp_path / "cache" / "upload.jsonl")
    known = DatasetChecks(DataCache(tmp_path / "cache"), uploads, hub_cache=tmp_path / "hub")
    async with running_launcher(preload="light_preload", entry="training_jobs:run") as launcher:
        await launcher.wait_warm()
        environment = Environment(
            launcher=launcher, store=store, bus=bus, task_service=peer.ask, folders={"scratch space": tmp_path / "work"}
        )
        places = Places(tmp_path / "work", tmp_path / "outputs", tmp_path / "objects")
        estimator = Estimator(places, Calibration(tmp_path / "calibration.json"))
        checks = SpecChecks(roots, models, known)
        servicer = TrainerServicer(checks, estimator, models, known, environment, Unasked(launcher))
        servicers = [(trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server, servicer, NAME)]
        async with (
            running_server(ServiceSettings(drain_seconds=0), servicers) as server,
            open_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            yield trainer_service_pb2_grpc.TrainerServiceStub(channel)
    await store.close()


async def test_devices(stub: Stub) -> None:
    answer = await stub.ListDevices(trainer.ListDevicesRequest())
    processor = answer.devices[0]
    assert (processor.id, processor.type) == ("cpu", "cpu")
    assert processor.cores == os.cpu_count()
    assert processor.memory_total > processor.memory_free > 0
    assert all(device.type == "cuda" for device in answer.devices[1:])


async def test_environment(stub: Stub, peer: Peer) -> None:
    answer = await stub.CheckEnvironment(trainer.CheckEnvironmentRequest(), timeout=50)
    checks = {check.name: check for check in answer.checks}
    assert {"python", "torch", "transformers", "peft", "memory", "scratch space", "training step"} <= set(checks)
    assert checks["training step"].ok, checks["training step"]
    assert checks["torch"].found[0].isdigit()
    assert checks["object store"].ok
    assert checks["message broker"].ok
    assert checks["task service"].ok
    assert answer.ready == all(check.ok for check in answer.checks)
    peer.error = Unavailable("nobody there")
    answer = await stub.CheckEnvironment(trainer.CheckEnvironmentRequest(), timeout=50)
    (found,) = [check for check in answer.checks if check.name == "task service"]
    assert (found.ok, found.found) == (False, "nobody there")
    assert found.advice
    assert not answer.ready


async def test_base_models(stub: Stub, model: Path) -> None:
    answer = await stub.ListBaseModels(trainer.ListBaseModelsRequest(modality="language_model"))
    found = {entry.id: entry for entry in answer.models}
    assert found[str(model)].local
    assert found[str(model)].family == "llama"
    assert not found["THUDM/chatglm3-6b"].local
    answer = await stub.ListBaseModels(trainer.ListBaseModelsRequest(modality="object_detector"))
    assert {entry.id for entry in answer.models} == {"yolov8n", "yolov8s"}


def write(folder: Path, *rows: object) -> spec_pb2.DatasetSource:
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return spec_pb2.DatasetSource(path=str(folder))


async def test_datasets_are_checked_and_shown(stub: Stub, tmp_path: Path) -> None:
    good = write(tmp_path / "data" / "good", *({"instruction": f"q{n}", "output": f"a{n}"} for n in range(8)))
    answer = await stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=good))
    assert (answer.valid, answer.rows, answer.format) == (True, 8, "instruction")
    preview = await stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=good))
    assert [[(m.role, m.content) for m in sample.messages] for sample in preview.samples] == [
        [("user", f"q{n}"), ("assistant", f"a{n}")] for n in range(5)
    ]
    preview = await stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=good, rows=2))
    assert len(preview.samples) == 2
    bad = write(tmp_path / "data" / "bad", {"instruction": "q", "output": "a"}, "not json", {"question": 1}, "{")
    answer = await stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=bad))
    assert (answer.valid, answer.rows) == (False, 1)
    problems = {problem.reason: problem for problem in answer.problems}
    assert (problems["NOT_JSON"].count, list(problems["NOT_JSON"].first_lines)) == (2, [2, 4])
    assert all(problem.file == "train.jsonl" and problem.hint for problem in answer.problems)


async def test_other_kinds_of_data_are_checked_and_shown(stub: Stub, tmp_path: Path) -> None:
    """Texts and classes; the columns that a user names."""
    folder = tmp_path / "data" / "classes"
    rows = [{"q": f"text {n}", "kind": ["good", "bad"][n % 2]} for n in range(4)]
    source = write(folder, *rows)
    source.columns.CopyFrom(spec_pb2.DatasetColumns(prompt="q", label="kind"))
    answer = await stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=source))
    assert (answer.valid, answer.format, answer.rows) == (True, "classification", 4)
    preview = await stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=source, rows=1))
    assert [(m.role, m.content) for m in preview.samples[0].messages] == [("text", "text 0"), ("label", "good")]
    (folder / "book.txt").write_text("One.\n\nTwo.\n")
    text = spec_pb2.DatasetSource(path=str(folder / "book.txt"))
    preview = await stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=text))
    assert [sample.messages[0].content for sample in preview.samples] == ["One.", "Two."]


async def test_a_report_without_a_model_has_no_tokens(stub: Stub, tmp_path: Path) -> None:
    row = {"instruction": "Say it", "output": "It is said"}
    source = write(tmp_path / "data" / "twice", row, row)
    report = await stub.ReportDataset(trainer.ReportDatasetRequest(dataset=source), timeout=50)
    assert (report.valid, dict(report.rows), report.exact_duplicates) == (True, {"train": 2}, 1)
    assert not report.HasField("lengths")
    assert any("1000" in text for text in report.advice)


async def test_datasets_that_cannot_be_read(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "data" / "empty").mkdir()
    paths = ("/etc", str(tmp_path / "data" / "missing"), str(tmp_path / "data" / "empty"), f"{tmp_path}/data/../secret")
    for path in paths:
        source = spec_pb2.DatasetSource(path=path, validation_path="/etc/passwd")
        with pytest.raises(InvalidArgument) as caught:
            await stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=source))
        fields = {problem.field for problem in caught.value.problems}
        assert "dataset.validation_path" in fields


async def check(stub: Stub, spec: spec_pb2.FinetuneSpec) -> dict[str, str]:
    answer = await stub.CheckSpec(trainer.CheckSpecRequest(spec=spec_pb2.TaskSpec(finetune=spec)))
    found: dict[str, str] = {}
    for problem in answer.problems:
        found[problem.field] = f"{found.get(problem.field, '')}{problem.message}\n"
    return found


async def test_a_sound_specification_has_no_problems(stub: Stub, make_spec: MakeSpec, tmp_path: Path) -> None:
    assert await check(stub, make_spec({})) == {}
    assert await check(stub, make_spec({}, output_dir=str(tmp_path / "data" / "new" / "deep"))) == {}
    assert await check(stub, make_spec({}, base_model="task:01abc")) == {}
    (tmp_path / "data" / "hollow").mkdir()
    assert await check(stub, make_spec({}, output_dir=str(tmp_path / "data" / "hollow"))) == {}


async def test_early_stopping_needs_rows_to_look_at(stub: Stub, make_spec: MakeSpec) -> None:
    """Evaluations where there are validation rows are nothing to stop by where there are none."""
    spec = make_spec({}, training=spec_pb2.TrainingParameters(eval_strategy=spec_pb2.INTERVAL_STRATEGY_AUTO))
    assert not await check(stub, spec)
    spec.training.early_stopping_patience = 2
    assert set(await check(stub, spec)) == {"finetune.training.eval_strategy"}


async def test_a_model_without_a_tokenizer_takes_another(stub: Stub, make_spec: MakeSpec, model: Path) -> None:
    """M28: the directory's own tokenizer is optional."""
    spec = make_spec({})
    other = model.parent / "tokenizer"
    other.mkdir()
    (model / "tokenizer.json").rename(other / "tokenizer.json")
    assert "no tokenizer" in (await check(stub, spec))["finetune.base_model"]
    spec.language_model.tokenizer_path = str(other)
    assert await check(stub, spec) == {}
    spec.language_model.tokenizer_path = str(model)
    assert set(await check(stub, spec)) == {"finetune.language_model.tokenizer_path"}


async def test_every_problem_of_a_specification_is_told_at_once(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path
) -> None:
    gguf = tmp_path / "data" / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    spec = make_spec({}, base_model=str(gguf), output_dir="/usr/local/model")
    write(Path(spec.dataset.path), {"question": "only"})
    spec.devices.cuda_visible_devices = "62,62"
    spec.training.optim, spec.training.lr_scheduler_type = "magic", "zigzag"
    problems = await check(stub, spec)
    assert set(problems) == {
        "finetune.base_model",
        "finetune.dataset.path",
        "finetune.output_dir",
        "finetune.devices.cuda_visible_devices",
        "finetune.training.optim",
        "finetune.training.lr_scheduler_type",
    }
    assert "GGUF" in problems["finetune.base_model"]
    assert "outside the allowed directories" in problems["finetune.output_dir"]


@pytest.mark.parametrize(
    ("make_target", "words"),
    [
        (lambda root: root, "an allowed directory itself"),
        (lambda root: root / "model" / "inside", ""),
        (lambda root: root / "model", "is not empty"),
        (lambda root: root / "model" / "config.json" / "deeper", "is not a directory"),
        (lambda root: root / "model" / "config.json", "is not a directory"),
        (lambda root: root / "link", "outside the allowed directories"),
        (lambda root: root / ".." / "elsewhere", "outside the allowed directories"),
    ],
)
async def test_output_directories(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path, make_target: Any, words: str
) -> None:
    (tmp_path / "data" / "link").symlink_to("/usr/local")
    problems = await check(stub, make_spec({}, output_dir=str(make_target(tmp_path / "data"))))
    assert words in problems.get("finetune.output_dir", "")
    assert bool(problems) == bool(words)


def test_an_output_below_a_read_only_directory_is_refused(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 28, at submit; whoever runs the tests may be allowed to write everywhere."""
    closed, access = tmp_path / "data" / "closed", os.access
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and access(path, mode))
    roots = AllowedRoots([tmp_path / "data"])
    checks = SpecChecks(roots, BaseModels(roots), DatasetChecks(DataCache(tmp_path / "cache")))
    spec = make_spec({}, output_dir=str(closed / "new" / "model"))
    (problem,) = checks.check(spec_pb2.TaskSpec(finetune=spec)).problems
    assert (problem.field, problem.message) == ("finetune.output_dir", f"{closed} cannot be written to")


@pytest.mark.parametrize("cpu_fallback", [False, True])
def test_named_gpus_without_any(make_spec: MakeSpec, tmp_path: Path, cpu_fallback: bool) -> None:
    roots = AllowedRoots([tmp_path / "data"])
    checks = SpecChecks(
        roots, BaseModels(roots), DatasetChecks(DataCache(tmp_path / "cache")), cpu_fallback=cpu_fallback
    )
    spec = make_spec({}, devices=spec_pb2.DeviceRequest(cuda_visible_devices="60"))
    problems = [problem.field for problem in checks.check(spec_pb2.TaskSpec(finetune=spec)).problems]
    accepted = cpu_fallback and not gpus()
    assert problems == ([] if accepted else ["finetune.devices.cuda_visible_devices"])


async def test_a_tokenizer_may_not_lead_out_of_the_allowed_directories(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """Fault 44: its chat template is saved with the model, so that a link would show any file."""
    folder = tmp_path / "data" / "tokenizer"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    spec = make_spec({})
    spec.language_model.tokenizer_path = str(folder)
    assert "finetune.language_model.tokenizer_path" not in await check(stub, spec)
    (folder / "chat_template.jinja").symlink_to("/etc/passwd")
    (folder / "additional_chat_templates" / "tools.jinja").symlink_to("/etc/hosts")
    found = await check(stub, spec)
    assert found["finetune.language_model.tokenizer_path"].startswith("chat_template.jinja, tools.jinja: links")


async def test_a_specification_is_checked_with_the_eyes_of_the_caller(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """Fault 53: somebody else's dataset is not there, and nothing in it is told."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "upload.jsonl").write_text("a secret\n")
    spec = make_spec({})
    spec.dataset.dataset_id = "d1"
    request = trainer.CheckSpecRequest(spec=spec_pb2.TaskSpec(finetune=spec))
    (problem,) = (await stub.CheckSpec(request, metadata=bearer("stranger"))).problems
    assert problem.message == "there is no dataset 'd1'"
    found = (await stub.CheckSpec(request, metadata=bearer("owner"))).problems
    assert found
    assert "there is no dataset" not in str(found)


async def test_what_this_version_cannot_do_is_unimplemented(stub: Stub, make_spec: MakeSpec) -> None:
    for more in ({"language_model": None, "object_detector": spec_pb2.ObjectDetectorParameters()},):
        with pytest.raises(Unimplemented):
            await check(stub, make_spec({}, **more))
    other = spec_pb2.TaskSpec(prepare=spec_pb2.PrepareSpec(dataset=spec_pb2.DatasetSource(path="x")))
    with pytest.raises(Unimplemented):
        await stub.CheckSpec(trainer.CheckSpecRequest(spec=other))


async def test_estimates(stub: Stub, make_spec: MakeSpec) -> None:
    """T20, M23: figures of memory, disk, checkpoints and steps, for the method asked for and for the others."""
    spec = make_spec({})
    spec.training.max_steps, spec.training.save_steps, spec.training.save_total_limit = 1000, 100, 3
    answer = await stub.EstimateResources(trainer.EstimateResourcesRequest(spec=spec))
    assert (answer.total_steps, answer.checkpoints, answer.checkpoints_kept, answer.rows) == (1000, 10, 3, 1)
    memory = answer.memory
    parts = memory.weights + memory.gradients + memory.optimizer + memory.activations + memory.overhead
    assert answer.memory_bytes == parts
    by_method = {item.method: item.memory_bytes for item in answer.methods}
    assert by_method[spec_pb2.METHOD_FULL] == answer.memory_bytes
    assert set(by_method) == {spec_pb2.METHOD_FULL, spec_pb2.METHOD_LORA, spec_pb2.METHOD_QLORA}
    assert answer.disk_free_bytes > answer.disk_bytes > 3 * answer.checkpoint_bytes > 0
    assert answer.memory_total_bytes > 0
    assert answer.fits
    assert answer.duration_seconds == 0
    assert any("duration is not known" in note for note in answer.notes)


async def test_nothing_to_estimate(stub: Stub, make_spec: MakeSpec) -> None:
    for more, field in (
        ({"base_model": "/nowhere"}, "spec.base_model"),
        ({"base_model": "task:01abc"}, "spec.base_model"),
        ({"dataset": spec_pb2.DatasetSource(path="/nowhere")}, "spec.dataset.path"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await stub.EstimateResources(trainer.EstimateResourcesRequest(spec=make_spec({}, **more)))
        assert [problem.field for problem in caught.value.problems] == [field]


async def test_a_disk_that_cannot_take_the_checkpoints_is_a_problem_of_the_specification(
    stub: Stub, make_spec: MakeSpec
) -> None:
    """Fault 25, M22: refused at submit, with the figures and what would fit."""
    spec = make_spec({})
    spec.training.max_steps, spec.training.save_steps = 1_000_000_000, 1
    problems = await check(stub, spec)
    assert set(problems) == {"finetune.training.save_total_limit"}
    assert "are needed in" in problems["finetune.training.save_total_limit"]
    spec.training.save_total_limit = 5
    assert await check(stub, spec) == {}


async def test_rules_of_the_proto_hold_here_too(stub: Stub) -> None:
    with pytest.raises(InvalidArgument):
        await stub.ValidateDataset(trainer.ValidateDatasetRequest())


def test_a_dataset_is_read_once_until_it_changes(tmp_path: Path) -> None:
    class Counting(DatasetChecks):
        reads = 0

        def _read(self, files: DatasetFiles) -> Any:
            self.reads += 1
            return super()._read(files)

    folder = tmp_path / secrets.token_hex(4)
    write(folder, {"instruction": "q", "output": "a"})
    cache = DataCache(tmp_path / "cache")
    checks = Counting(cache)
    assert checks.check(locate(folder, cache)).rows == 1
    assert checks.check(locate(folder, cache)).rows == 1
    assert checks.reads == 1
    write(folder, {"instruction": "q", "output": "a"}, {"instruction": "r", "output": "b"})
    assert checks.check(locate(folder, cache)).rows == 2
    assert checks.reads == 2
