"""Evaluations as clients see them, over a real gRPC server and with real tokens (T26, M15)."""

import hashlib
from collections.abc import AsyncIterator

import orjson
import pytest

from eval_service.evaluations import Evaluations
from modelkit.checkpoints import FileEntry, Manifest
from servicekit.errors import FailedPrecondition, Internal, InvalidArgument, NotFound
from servicekit.objects import ObjectStore
from services.workerkit.tests.known_tasks import TaskOffice
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import spec_pb2, task_pb2

SPEC = spec_pb2.EvaluateSpec(source_task_id="a-training")
TASK_SPEC = spec_pb2.TaskSpec(evaluate=SPEC)
REPORT = b"the whole report, which only downloads read"
SUMMARY = {
    "samples": 9,
    "recommendation": {
        "step": 20,
        "distinguishable": False,
        "equivalent_steps": [30],
        "worse_than_base_steps": [10],
        "text": "Checkpoints 20, 30 can't be told apart.",
    },
    "checkpoints": [
        {
            "step": 20,
            "base_model": False,
            "total": 0.7,
            "values": [
                {"name": "coverage", "value": 0.5, "low": 0.4, "high": 0.6, "samples": 9},
                {"name": "perplexity", "value": 12.3, "low": None, "high": None, "samples": 1},
                {"name": "token_f1", "value": None, "low": None, "high": None, "samples": 0},
            ],
            "suites": {"arc_easy/acc": 0.25},
        }
    ],
}


@pytest.fixture
async def evaluations(office: TaskOffice, store: ObjectStore) -> AsyncIterator[Evaluations]:
    await store.prepare()
    await store.put_bytes("tasks/done/output/summary.json", orjson.dumps(SUMMARY))
    await store.put_bytes("tasks/done/output/report.json", REPORT)
    office.known.add_work("done", TASK_SPEC, "tasks/done/output")
    office.known.add_work("running", TASK_SPEC)
    yield Evaluations(office.stub, store)
    await store.close()


async def test_creating_makes_a_task_of_the_caller(evaluations: Evaluations, office: TaskOffice) -> None:
    created = await evaluations.create("", SPEC, office.token())
    assert (created.state, created.spec) == (task_pb2.STATE_PENDING, SPEC)
    assert created.name.startswith("evaluate_2")


async def test_a_report_becomes_scores(evaluations: Evaluations, office: TaskOffice) -> None:
    found = await evaluations.get("done", office.token())
    assert (found.recommended_step, found.samples, found.name) == (20, 9, "done!")
    assert list(found.recommendation.equivalent_steps) == [30]
    assert list(found.recommendation.worse_than_base_steps) == [10]
    (checkpoint,) = found.checkpoints
    assert dict(checkpoint.scores) == {"coverage": 0.5, "perplexity": 12.3, "suite:arc_easy/acc": 0.25}
    assert list(checkpoint.values) == [
        pb.ScoreValue(name="coverage", value=0.5, low=0.4, high=0.6, samples=9),
        pb.ScoreValue(name="perplexity", value=12.3, low=12.3, high=12.3, samples=1),
    ]
    assert (checkpoint.total, checkpoint.total_low, checkpoint.total_high) == (0.7, 0.7, 0.7)
    assert checkpoint.band == ""
    assert not (await evaluations.get("running", office.token())).checkpoints


async def test_a_list_has_scores(evaluations: Evaluations, office: TaskOffice) -> None:
    found, following = await evaluations.list(10, "", office.token())
    assert [item.recommended_step for item in found] == [20, 0]
    assert following == "more"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"samples": 1}', b'{"samples": 1, "recommendation": []}'])
async def test_a_summary_that_is_damaged_is_no_report(
    evaluations: Evaluations, office: TaskOffice, store: ObjectStore, content: bytes
) -> None:
    await store.put_bytes("tasks/done/output/summary.json", content)
    with pytest.raises(Internal, match=r"summary\.json of evaluation done is damaged"):
        await evaluations.get("done", office.token())
    found, _ = await evaluations.list(10, "", office.token())
    assert [item.task_id for item in found] == ["done", "running"]


async def test_a_summary_that_is_too_large_is_left_to_downloads(
    evaluations: Evaluations, office: TaskOffice, store: ObjectStore
) -> None:
    await store.put_bytes("tasks/done/output/summary.json", b" " * (4 << 20) + orjson.dumps(SUMMARY))
    with pytest.raises(FailedPrecondition, match="download its report instead") as caught:
        await evaluations.get("done", office.token())
    assert caught.value.reason == "SUMMARY_TOO_LARGE"
    assert await collected(evaluations, office.token(), "done", "report.json", 0) == (REPORT, len(REPORT))


async def test_what_belongs_to_others_is_not_there(evaluations: Evaluations, office: TaskOffice) -> None:
    await evaluations.get("done", office.token())
    for call in (
        evaluations.get("done", office.token("bob")),
        collected(evaluations, office.token("bob"), "done", "report.json", 0),
    ):
        with pytest.raises(NotFound):
            await call


async def collected(evaluations: Evaluations, token: str, task_id: str, name: str, offset: int) -> tuple[bytes, int]:
    """The bytes of a file, and its whole size."""
    data, size = b"", 0
    async for piece in evaluations.download(task_id, name, offset, token):
        data, size = data + piece.data, size or piece.total_size
    return data, size


async def test_a_report_is_downloaded_from_an_offset(evaluations: Evaluations, office: TaskOffice) -> None:
    whole, token = REPORT, office.token()
    assert await collected(evaluations, token, "done", "report.json", 0) == (whole, len(whole))
    assert await collected(evaluations, token, "done", "report.json", 40) == (whole[40:], len(whole))
    assert await collected(evaluations, token, "done", "report.json", len(whole)) == (b"", len(whole))
    with pytest.raises(InvalidArgument, match="beyond the end"):
        await collected(evaluations, token, "done", "report.json", len(whole) + 1)
    with pytest.raises(FailedPrecondition, match="RUNNING and has no report") as caught:
        await collected(evaluations, token, "running", "report.json", 0)
    assert caught.value.reason == "NO_REPORT"
    with pytest.raises(NotFound):
        await collected(evaluations, token, "done", "report.html", 0)


async def test_a_report_that_is_not_what_was_stored_is_told_at_its_end(
    evaluations: Evaluations, office: TaskOffice, store: ObjectStore
) -> None:
    files = (FileEntry("report.json", len(REPORT), hashlib.sha256(REPORT).hexdigest()),)
    manifest = Manifest(files, base_model="", attempt=1, step=0).to_json()
    sha256 = hashlib.sha256(manifest).hexdigest()
    office.known.add_work("kept", TASK_SPEC, "tasks/kept/output", manifest_sha256=sha256)
    await store.put_bytes("tasks/kept/output/manifest.json", manifest)
    await store.put_bytes("tasks/kept/output/report.json", REPORT)
    assert await collected(evaluations, office.token(), "kept", "report.json", 0) == (REPORT, len(REPORT))
    await store.put_bytes("tasks/kept/output/report.json", REPORT.replace(b"whole", b"wholf"))
    with pytest.raises(Internal, match=r"report\.json of evaluation kept is damaged") as caught:
        await collected(evaluations, office.token(), "kept", "report.json", 0)
    assert caught.value.reason == "DATA_DAMAGED"
