"""Tasks of one kind as their users see them, over a real gRPC server and with real tokens."""

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelkit.checkpoints import FileEntry, Manifest
from servicekit.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Problem
from servicekit.objects import ObjectStore
from services.workerkit.tests.known_tasks import TaskOffice
from tunesmith.task.v1 import spec_pb2, task_pb2
from workerkit.results import ResultKind, TaskResults, check_offset

SPEC = spec_pb2.TaskSpec(evaluate=spec_pb2.EvaluateSpec(source_task_id="a-training"))
Results = TaskResults[Any]
LIMIT = 1000


@pytest.fixture
async def results(office: TaskOffice, store: ObjectStore) -> AsyncIterator[Results]:
    await store.prepare()
    await store.put_bytes("tasks/done/output/result.json", b'{"points": 7}')
    office.known.add_work("done", SPEC, "tasks/done/output/")
    office.known.add_work("running", SPEC)
    kind = ResultKind(
        work="evaluate",
        noun="evaluation",
        made="report",
        file="result.json",
        parse=lambda raw: json.loads(raw)["points"],
        none_reason="NO_REPORT",
        most_bytes=LIMIT,
        large_reason="SUMMARY_TOO_LARGE",
        large_advice="download its report instead",
    )
    yield TaskResults(office.stub, store, kind)
    await store.close()


async def listed(results: Results, office: TaskOffice, user: str = "ann") -> dict[str, Any]:
    found, following = await results.page(10, "", office.token(user))
    assert following == "more"
    return {task.id: result for task, result in found}


async def test_creating_makes_a_task_of_the_caller(results: Results, office: TaskOffice) -> None:
    created = await results.create("", SPEC, office.token("bob"))
    assert (created.state, created.owner, created.spec) == (task_pb2.STATE_PENDING, "bob", SPEC)
    assert created.name.startswith("evaluate_2")
    assert (await results.create("mine", SPEC, office.token())).name == "mine"


async def test_what_is_refused_names_the_fields_of_the_request(results: Results, office: TaskOffice) -> None:
    problems = [Problem("spec.evaluate.scores[0]", "there is no such score"), Problem("name", "is too long")]
    office.known.refusal = InvalidArgument(reason="SPEC_INVALID", problems=problems)
    with pytest.raises(InvalidArgument) as caught:
        await results.create("", SPEC, office.token())
    assert caught.value.reason == "SPEC_INVALID"
    assert caught.value.problems == (Problem("spec.scores[0]", "there is no such score"), problems[1])
    office.known.refusal = InvalidArgument("not so")
    with pytest.raises(InvalidArgument, match="not so"):
        await results.create("", SPEC, office.token())


async def test_a_list_has_results_and_reads_each_once(results: Results, office: TaskOffice) -> None:
    for _ in range(3):
        assert await listed(results, office) == {"done": 7, "running": None}
    assert office.known.asked_for_sources == 1


async def test_a_result_that_cannot_be_read_spoils_no_list(
    results: Results, office: TaskOffice, store: ObjectStore
) -> None:
    contents = {"damaged": b"{", "other": b"{}", "large": b" " * LIMIT + b"{}"}
    for name, content in contents.items():
        office.known.add_work(name, SPEC, f"tasks/{name}/output")
        await store.put_bytes(f"tasks/{name}/output/result.json", content)
    office.known.add_work("lost", SPEC, "tasks/lost/output")
    unread = dict.fromkeys([*contents, "lost"])
    assert await listed(results, office) == {"done": 7, "running": None, **unread}
    for name, error, message in (
        ("damaged", Internal, "result.json of evaluation damaged is damaged"),
        ("other", Internal, "KeyError"),
        ("large", FailedPrecondition, "download its report instead"),
        ("lost", NotFound, "evaluation lost has no result.json"),
    ):
        with pytest.raises(error, match=message):
            await results.result(office.known.tasks[name], office.token())
    with pytest.raises(FailedPrecondition, match=f"more than {LIMIT}") as caught:
        await results.result(office.known.tasks["large"], office.token())
    assert caught.value.reason == "SUMMARY_TOO_LARGE"


async def test_a_result_that_is_not_what_was_stored_is_not_shown(
    results: Results, office: TaskOffice, store: ObjectStore
) -> None:
    """Also when the file can still be read: a flipped bit turns a 7 into a 3."""
    digest = hashlib.sha256(b'{"points": 7}').hexdigest()
    manifest = Manifest((FileEntry("result.json", 13, digest),), base_model="", attempt=1, step=0).to_json()
    recorded = hashlib.sha256(manifest).hexdigest()
    for name, content in (("whole", b'{"points": 7}'), ("flipped", b'{"points": 3}')):
        office.known.add_work(name, SPEC, f"tasks/{name}/output", manifest_sha256=recorded)
        await store.put_bytes(f"tasks/{name}/output/result.json", content)
        await store.put_bytes(f"tasks/{name}/output/manifest.json", manifest)
    token, tasks = office.token(), office.known.tasks
    assert await results.result(tasks["whole"], token) == 7
    assert await results.sha256(tasks["whole"], "result.json", token) == digest
    with pytest.raises(NotFound, match=r"evaluation whole has no other\.json"):
        await results.sha256(tasks["whole"], "other.json", token)
    with pytest.raises(Internal, match=r"result\.json of evaluation flipped is damaged") as caught:
        await results.result(tasks["flipped"], token)
    assert caught.value.reason == "DATA_DAMAGED"
    await store.put_bytes("tasks/flipped/output/manifest.json", manifest.replace(b'"step":0', b'"step":1'))
    with pytest.raises(Internal, match=r"manifest\.json of evaluation flipped is damaged"):
        await results.result(tasks["flipped"], token)


async def test_an_output_is_there_when_the_task_has_completed(results: Results, office: TaskOffice) -> None:
    assert await results.output(office.known.tasks["done"], office.token()) == "tasks/done/output"
    with pytest.raises(FailedPrecondition, match="evaluation running is RUNNING and has no report") as caught:
        await results.output(office.known.tasks["running"], office.token())
    assert caught.value.reason == "NO_REPORT"


async def test_what_belongs_to_others_or_is_of_another_kind_is_not_there(results: Results, office: TaskOffice) -> None:
    assert (await results.task("done", office.token())).name == "done!"
    office.known.add_work("training", spec_pb2.TaskSpec(finetune=spec_pb2.FinetuneSpec()))
    for task_id, user, message in (("done", "bob", "there is no task"), ("training", "ann", "is no evaluation")):
        with pytest.raises(NotFound, match=message):
            await results.task(task_id, office.token(user))
    assert await listed(results, office, "bob") == {}
    assert "training" not in await listed(results, office)


def test_an_offset_may_be_the_end_and_no_more() -> None:
    check_offset(5, 5, "a.bin")
    with pytest.raises(InvalidArgument, match=r"beyond the end of a\.bin, which has 5 bytes"):
        check_offset(6, 5, "a.bin")
