"""The export service over a real gRPC server: formats, exports and their files, stored models (rows T31, C44)."""

import io
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from export_service.exports import KIND, Exports
from export_service.models import StoredModels
from export_service.results import RESULT, CheckResult, Result, write_result
from export_service.servicer import ExportServicer
from export_service.settings import ExportSettings
from export_service.setup import NAME
from servicekit.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Problem, ResourceExhausted
from servicekit.grpc_client import bearer, open_channel
from servicekit.grpc_server import running_server
from servicekit.identity import Role
from services.export_service.tests.bench import Bench
from services.export_service.tests.trained import trained_adapter
from services.workerkit.tests.known_tasks import TaskOffice
from tunesmith.export.v1 import export_service_pb2 as pb
from tunesmith.export.v1 import export_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2
from workerkit.turns import Limits, Turns

K_QUANTS = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"}
I_QUANTS = {"IQ1_S", "IQ1_M", "IQ2_S", "IQ2_M", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"}
PLAIN = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"}
CHECK = CheckResult("model.gguf", "perplexity", 0.01, 0.25, True, "model.gguf: perplexity 0.01, within the limit 0.25")
SPEC = spec_pb2.ExportSpec(source_task_id="a-training", format=spec_pb2.EXPORT_FORMAT_GGUF, quantizations=["Q8_0"])
TASK_SPEC = spec_pb2.TaskSpec(export=SPEC)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trained_adapter(base, tmp_path_factory.mktemp("trained") / "checkpoint-8")
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_text("curves")
    return folder


Serving = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def serving(bench: Bench, office: TaskOffice) -> Serving:
    """Serves beside a task service; user and role are those of who calls."""
    exports, models = Exports(office.stub, bench.store), StoredModels(office.stub, bench.store)

    @asynccontextmanager
    async def serve(user: str = "ann", role: Role = Role.USER, turns: Turns | None = None) -> AsyncIterator[Any]:
        servicer = ExportServicer(office.stub, exports, models, bench.checks, turns or Turns())
        servicers = [(export_service_pb2_grpc.add_ExportServiceServicer_to_server, servicer, NAME)]
        settings = ExportSettings(port=0, drain_seconds=0, public_key_file=office.public_key_file)
        async with (
            running_server(settings, servicers) as server,
            open_channel(f"127.0.0.1:{server.port}", office.token(user, role)) as channel,
        ):
            yield export_service_pb2_grpc.ExportServiceStub(channel)

    return serve


@pytest.fixture
async def stub(serving: Serving) -> AsyncIterator["export_service_pb2_grpc.ExportServiceAsyncStub"]:
    async with serving() as made:
        yield made


async def completed(bench: Bench, office: TaskOffice, tmp_path: Path) -> bytes:
    """A finished export of one file; its content."""
    folder = tmp_path / "an-export"
    folder.mkdir()
    content = bytes(range(256)) * 12_000
    (folder / "model.gguf").write_bytes(content)
    write_result(folder, [CHECK])
    stored = await bench.upload(folder, "output", task="an-export")
    source = task_service_pb2.TaskSource(task_id="an-export", spec=TASK_SPEC, state=task_pb2.STATE_COMPLETED)
    source.output.prefix, source.output.manifest_sha256 = stored.prefix, stored.manifest_sha256
    office.known.add(source)
    return content


async def download(stub: Any, **request: Any) -> tuple[bytes, pb.DownloadArtifactResponse]:
    """The bytes of a file, and the first piece."""
    pieces = [piece async for piece in stub.DownloadArtifact(pb.DownloadArtifactRequest(**request))]
    return b"".join(piece.data for piece in pieces), pieces[0]


async def test_reports_healthy(bench: Bench) -> None:
    servicer = ExportServicer(None, None, None, bench.checks, Turns())  # type: ignore[arg-type]
    servicers = [(export_service_pb2_grpc.add_ExportServiceServicer_to_server, servicer, NAME)]
    async with (
        running_server(ExportSettings(port=0, drain_seconds=0), servicers) as server,
        open_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_problems_are_told_when_the_users_turn_comes(serving: Serving, bench: Bench, office: TaskOffice) -> None:
    turns = Turns(Limits(at_once=1, waiting=0))
    source = office.known.add(bench.source())
    request = pb.CheckSpecRequest(spec=SPEC, source=source)
    async with serving(turns=turns) as stub:
        async with turns.of("somebody else"):
            with pytest.raises(ResourceExhausted) as told:
                await stub.CheckSpec(request)
        assert told.value.reason == "TOO_MANY_CHECKS"
        assert [item.field for item in (await stub.CheckSpec(request)).problems] == ["export.checkpoint_step"]


async def test_describes_every_format_once_and_writes_them_all(stub: Any) -> None:
    found = list((await stub.ListFormats(pb.ListFormatsRequest())).formats)
    assert len({(item.format, item.quantization) for item in found}) == len(found)
    assert {item.format for item in found} == set(spec_pb2.ExportFormat.values()) - {0}
    assert all(item.available and item.description for item in found)
    quantized = {item.quantization: item for item in found if item.format == spec_pb2.EXPORT_FORMAT_GGUF}
    assert set(quantized) == K_QUANTS | I_QUANTS | PLAIN
    assert all(1.5 < item.bits_per_weight <= 32 for item in quantized.values())
    assert all("divisible by 256" in quantized[name].description for name in K_QUANTS | I_QUANTS - {"IQ4_NL"})
    sizes = [quantized[name].bits_per_weight for name in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")]
    assert sizes == sorted(sizes)
    others = [item for item in found if item.format != spec_pb2.EXPORT_FORMAT_GGUF]
    assert all(not item.quantization and item.bits_per_weight == 0 for item in others)


async def test_the_packages_of_the_studio_are_offered_and_can_be_made(
    stub: Any, bench: Bench, source: task_service_pb2.TaskSource
) -> None:
    found = list((await stub.ListFormats(pb.ListFormatsRequest())).templates)
    assert [item.name for item in found] == ["merge_and_quantize", "merge_only", "base_only", "lora_only"]
    assert [item.is_default for item in found] == [True, False, False, False]
    assert (found[0].format, list(found[0].quantizations)) == (spec_pb2.EXPORT_FORMAT_GGUF, ["Q4_K_M"])
    for item in found:
        spec = spec_pb2.ExportSpec(source_task_id="a-training", format=item.format, quantizations=item.quantizations)
        assert (await bench.checks.check(spec, source)).problems == []


async def test_an_export_is_a_task_of_the_caller(stub: Any, office: TaskOffice) -> None:
    created = (await stub.CreateExport(pb.CreateExportRequest(spec=SPEC))).export
    assert (created.task_id, created.state, created.spec) == ("created", task_pb2.STATE_PENDING, SPEC)
    assert created.name.startswith("export_")
    named = await stub.CreateExport(pb.CreateExportRequest(name="for the phone", spec=SPEC))
    assert named.export.name == "for the phone"
    office.known.refusal = InvalidArgument(problems=[Problem("spec.export.quantizations[0]", "no")])
    with pytest.raises(InvalidArgument) as caught:
        await stub.CreateExport(pb.CreateExportRequest(spec=SPEC))
    assert [problem.field for problem in caught.value.problems] == ["spec.quantizations[0]"]


async def test_names_every_bad_field(stub: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await stub.CreateExport(pb.CreateExportRequest(spec=spec_pb2.ExportSpec(checkpoint_step=-1)))
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"spec.source_task_id", "spec.checkpoint_step", "spec.format"}


async def test_an_export_tells_its_files_and_checks(
    stub: Any, bench: Bench, office: TaskOffice, tmp_path: Path
) -> None:
    content = await completed(bench, office, tmp_path)
    found = (await stub.GetExport(pb.GetExportRequest(task_id="an-export"))).export
    assert [(item.name, item.size) for item in found.artifacts] == [("model.gguf", len(content))]
    assert [(item.name, item.value, item.limit, item.passed) for item in found.checks] == [
        ("perplexity", 0.01, 0.25, True)
    ]
    office.known.add(task_service_pb2.TaskSource(task_id="waiting", spec=TASK_SPEC, state=task_pb2.STATE_PENDING))
    listed = await stub.ListExports(pb.ListExportsRequest())
    assert [(item.task_id, len(item.artifacts)) for item in listed.exports] == [("an-export", 1), ("waiting", 0)]
    assert listed.next_page_token == "more"


async def test_what_is_no_export_or_another_users_is_not_found(
    stub: Any, bench: Bench, office: TaskOffice, tmp_path: Path
) -> None:
    await completed(bench, office, tmp_path)
    office.known.add(bench.source())
    with pytest.raises(NotFound, match="is no export"):
        await stub.GetExport(pb.GetExportRequest(task_id="a-training"))
    stranger = bearer(office.token("bob"))
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: stub.GetExport(pb.GetExportRequest(task_id="an-export"), metadata=stranger),
        lambda: read(
            stub.DownloadArtifact(pb.DownloadArtifactRequest(task_id="an-export", name="x"), metadata=stranger)
        ),
        lambda: read(stub.DownloadModel(pb.DownloadModelRequest(task_id="an-export"), metadata=stranger)),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            await call()


async def read(pieces: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in pieces]


@pytest.mark.parametrize("offset", [0, 1, 1_048_576, 2_000_000, 256 * 12_000])
async def test_a_file_is_downloaded_from_an_offset(
    stub: Any, bench: Bench, office: TaskOffice, tmp_path: Path, offset: int
) -> None:
    content = await completed(bench, office, tmp_path)
    got, first = await download(stub, task_id="an-export", name="model.gguf", offset=offset)
    assert got == content[offset:]
    assert first.total_size == len(content)
    assert first.sha256 == (await stub.GetExport(pb.GetExportRequest(task_id="an-export"))).export.artifacts[0].sha256


async def test_only_listed_files_are_downloaded(stub: Any, bench: Bench, office: TaskOffice, tmp_path: Path) -> None:
    content = await completed(bench, office, tmp_path)
    for name in (RESULT, "manifest.json", "../output/model.gguf", "nothing"):
        with pytest.raises(NotFound, match=r"it has model\.gguf"):
            await download(stub, task_id="an-export", name=name)
    with pytest.raises(InvalidArgument, match="beyond the end"):
        await download(stub, task_id="an-export", name="model.gguf", offset=len(content) + 1)
    office.known.tasks["an-export"].state = task_pb2.STATE_RUNNING
    with pytest.raises(FailedPrecondition, match="is RUNNING and has no files") as caught:
        await download(stub, task_id="an-export", name="model.gguf")
    assert caught.value.reason == "NO_ARTIFACTS"


async def test_a_list_of_files_may_be_longer_than_a_summary(
    stub: Any, bench: Bench, office: TaskOffice, tmp_path: Path
) -> None:
    content = await completed(bench, office, tmp_path)
    output = office.known.sources["an-export"].output
    listed = await bench.store.get_bytes(f"{output.prefix}/{RESULT}")
    await bench.store.put_bytes(f"{output.prefix}/{RESULT}", b" " * (5 << 20) + listed)
    output.manifest_sha256 = ""  # the list is not what its manifest says
    assert (await download(stub, task_id="an-export", name="model.gguf"))[0] == content
    assert (KIND.most_bytes, KIND.large_reason) == (64 << 20, "RESULT_TOO_LARGE")
    assert "download" not in KIND.large_advice, "downloads need the list"


async def test_a_damaged_file_ends_with_an_error(stub: Any, bench: Bench, office: TaskOffice, tmp_path: Path) -> None:
    content = await completed(bench, office, tmp_path)
    await bench.store.put_bytes("tasks/an-export/attempts/1/output/model.gguf", content[:-1] + b"x")
    with pytest.raises(Internal, match="damaged"):
        await download(stub, task_id="an-export", name="model.gguf")


async def unpacked(stub: Any, **request: Any) -> zipfile.ZipFile:
    pieces = [piece.data async for piece in stub.DownloadModel(pb.DownloadModelRequest(**request))]
    return zipfile.ZipFile(io.BytesIO(b"".join(pieces)))


async def test_a_stored_model_is_a_zip_as_it_is_or_its_adapter_alone(
    stub: Any, bench: Bench, office: TaskOffice, adapter: Path
) -> None:
    source = bench.source()
    await bench.add_checkpoint(source, adapter, 8)
    await bench.finish(source, adapter, 12)
    office.known.add(source)
    for request in ({"checkpoint_step": 8}, {}):
        archive = await unpacked(stub, task_id="a-training", **request)
        assert archive.testzip() is None
        assert {"optimizer.pt", "adapter_model.safetensors", "runs/events"} <= set(archive.namelist())
        assert all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())
        assert archive.read("adapter_config.json") == (adapter / "adapter_config.json").read_bytes()
    names = set((await unpacked(stub, task_id="a-training", adapter_only=True)).namelist())
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert not {"optimizer.pt", "trainer_state.json", "runs/events"} & names


async def test_a_model_that_is_not_there_is_refused(
    stub: Any, bench: Bench, office: TaskOffice, adapter: Path, base: Path
) -> None:
    source = office.known.add(bench.source())
    with pytest.raises(FailedPrecondition, match="has no final model"):
        await unpacked(stub, task_id="a-training")
    with pytest.raises(NotFound, match="no stored checkpoint of step 3"):
        await unpacked(stub, task_id="a-training", checkpoint_step=3)
    source.spec.finetune.language_model.method = spec_pb2.METHOD_FULL
    await bench.finish(source, base, 12)
    with pytest.raises(FailedPrecondition, match="has no adapter"):
        await unpacked(stub, task_id="a-training", adapter_only=True)
    assert "model.safetensors" in (await unpacked(stub, task_id="a-training")).namelist()
    await bench.store.delete(f"{source.output.prefix}/manifest.json")
    with pytest.raises(FailedPrecondition, match=r"cannot be used: manifest\.json is missing"):
        await unpacked(stub, task_id="a-training")


async def test_checks_a_specification_for_the_task_service(
    stub: Any, bench: Bench, office: TaskOffice, adapter: Path
) -> None:
    source = office.known.add(bench.source())
    await bench.finish(source, adapter, 12)
    request = pb.CheckSpecRequest(spec=SPEC, source=source)
    assert list((await stub.CheckSpec(request)).problems) == []
    request.spec.quantizations.append("Q77")
    assert [problem.field for problem in (await stub.CheckSpec(request)).problems] == ["export.quantizations[1]"]
    source.output.prefix = "datasets/of-somebody"
    assert "not among what tasks have stored" in (await stub.CheckSpec(request)).problems[0].message


async def test_a_callers_word_is_not_taken_for_what_a_task_has_stored(
    stub: Any, bench: Bench, office: TaskOffice, adapter: Path
) -> None:
    claimed = bench.source()
    await bench.finish(claimed, adapter, 12)
    request = pb.CheckSpecRequest(spec=SPEC, source=claimed)
    assert [(item.field, item.message) for item in (await stub.CheckSpec(request)).problems] == [
        ("export.source_task_id", "there is no task a-training")
    ]
    office.known.add(bench.source())
    told = (await stub.CheckSpec(request)).problems
    assert [item.field for item in told] == ["export.checkpoint_step"]
    assert "has no final model" in told[0].message


async def test_a_workers_word_is_taken(serving: Serving, bench: Bench, adapter: Path) -> None:
    source = bench.source()
    await bench.finish(source, adapter, 12)
    async with serving("worker", Role.SERVICE) as stub:
        assert list((await stub.CheckSpec(pb.CheckSpecRequest(spec=SPEC, source=source))).problems) == []


def test_a_result_that_is_damaged_is_no_result() -> None:
    assert Result.from_json(Result(checks=(CHECK,)).to_json()).checks == (CHECK,)
    for raw in (b"{}", b"[]", b"nothing"):
        with pytest.raises(ValueError):
            Result.from_json(raw)
