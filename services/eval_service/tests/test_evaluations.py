"""Evaluations as clients see them, over real gRPC servers and with real tokens (T26, M15)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from eval_service.evaluations import SUMMARY_BYTES, Evaluations
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import running_server
from servicekit.identity import Role, TokenIssuer, current_principal, generate_private_key, public_key
from servicekit.objects import ObjectStore
from servicekit.settings import ServiceSettings
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc

NAME = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].full_name
SPEC = spec_pb2.EvaluateSpec(source_task_id="a-training")
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
                {"name": "perplexity", "value": None, "low": None, "high": None, "samples": 0},
            ],
            "suites": {"arc_easy/acc": 0.25},
        }
    ],
}


@dataclass
class Tasks(task_service_pb2_grpc.TaskServiceServicer):
    """Keeps tasks for their owners."""

    tasks: dict[str, task_pb2.Task] = field(default_factory=dict)
    prefixes: dict[str, str] = field(default_factory=dict)
    asked_for_sources: int = 0
    refusal: InvalidArgument | None = None

    def __hash__(self) -> int:
        return id(self)

    def add(self, task_id: str, owner: str, prefix: str = "", **fields: Any) -> None:
        spec = spec_pb2.TaskSpec(evaluate=SPEC)
        state = task_pb2.STATE_COMPLETED if prefix else task_pb2.STATE_RUNNING
        given = {"spec": spec, "state": state, **fields}
        self.tasks[task_id] = task_pb2.Task(id=task_id, name=f"{task_id}!", owner=owner, **given)
        self.prefixes[task_id] = prefix

    def _mine(self, task_id: str) -> task_pb2.Task:
        task = self.tasks.get(task_id)
        if task is None or task.owner != current_principal().user:
            raise NotFound(f"there is no task {task_id}")
        return task

    async def CreateTask(self, request: Any, context: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.add("created", current_principal().user, spec=request.spec, state=task_pb2.STATE_PENDING)
        self.tasks["created"].name = request.name
        return task_service_pb2.CreateTaskResponse(task=self.tasks["created"])

    async def GetTask(self, request: Any, context: Any) -> Any:
        return task_service_pb2.GetTaskResponse(task=self._mine(request.task_id))

    async def ListTasks(self, request: Any, context: Any) -> Any:
        assert list(request.kinds) == [task_pb2.KIND_EVALUATE]
        mine = [task for task in self.tasks.values() if task.owner == current_principal().user]
        return task_service_pb2.ListTasksResponse(tasks=mine[: request.page_size or 50], next_page_token="more")

    async def GetTaskSource(self, request: Any, context: Any) -> Any:
        self.asked_for_sources += 1
        task = self._mine(request.task_id)
        output = task_service_pb2.TaskOutput(prefix=self.prefixes[task.id])
        return task_service_pb2.GetTaskSourceResponse(source=task_service_pb2.TaskSource(output=output))


@dataclass
class Setting:
    """Evaluations in front of a task service, and tokens of users."""

    tasks: Tasks
    evaluations: Evaluations
    issuer: TokenIssuer

    def token(self, user: str) -> str:
        return self.issuer.issue(user, Role.USER, timedelta(minutes=5))


@asynccontextmanager
async def running(store: ObjectStore, key_file: Path) -> AsyncIterator[Setting]:
    key = generate_private_key()
    key_file.write_bytes(public_key(key))
    tasks = Tasks()
    settings = ServiceSettings(drain_seconds=0, public_key_file=key_file)
    servicers = [(task_service_pb2_grpc.add_TaskServiceServicer_to_server, tasks, NAME)]
    async with (
        running_server(settings, servicers) as server,
        open_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield Setting(tasks, Evaluations(task_service_pb2_grpc.TaskServiceStub(channel), store), TokenIssuer(key))


@pytest.fixture
async def setting(store: ObjectStore, tmp_path: Path) -> AsyncIterator[Setting]:
    await store.prepare()
    await store.put_bytes("tasks/done/output/summary.json", orjson.dumps(SUMMARY))
    await store.put_bytes("tasks/done/output/report.json", REPORT)
    async with running(store, tmp_path / "key.pem") as found:
        found.tasks.add("done", "ann", "tasks/done/output")
        found.tasks.add("running", "ann")
        yield found
    await store.close()


async def test_creating_makes_a_task_of_the_caller(setting: Setting) -> None:
    created = await setting.evaluations.create("", SPEC, setting.token("ann"))
    assert created.state == task_pb2.STATE_PENDING
    assert created.name.startswith("evaluate_2")
    assert setting.tasks.tasks["created"].owner == "ann"
    assert setting.tasks.tasks["created"].spec.evaluate == SPEC


async def test_what_is_refused_names_the_fields_of_the_request(setting: Setting) -> None:
    problems = [Problem("spec.evaluate.scores[0]", "there is no such score"), Problem("name", "is too long")]
    setting.tasks.refusal = InvalidArgument(reason="SPEC_INVALID", problems=problems)
    with pytest.raises(InvalidArgument) as caught:
        await setting.evaluations.create("", SPEC, setting.token("ann"))
    assert caught.value.reason == "SPEC_INVALID"
    assert caught.value.problems == (Problem("spec.scores[0]", "there is no such score"), problems[1])
    setting.tasks.refusal = InvalidArgument("not so")
    with pytest.raises(InvalidArgument, match="not so"):
        await setting.evaluations.create("", SPEC, setting.token("ann"))


async def test_a_report_becomes_scores(setting: Setting) -> None:
    found = await setting.evaluations.get("done", setting.token("ann"))
    assert (found.recommended_step, found.samples, found.name) == (20, 9, "done!")
    assert list(found.recommendation.equivalent_steps) == [30]
    assert list(found.recommendation.worse_than_base_steps) == [10]
    (checkpoint,) = found.checkpoints
    assert dict(checkpoint.scores) == {"coverage": 0.5, "suite:arc_easy/acc": 0.25}
    assert checkpoint.values[0] == pb.ScoreValue(name="coverage", value=0.5, low=0.4, high=0.6, samples=9)
    assert checkpoint.total == pytest.approx(0.7)
    assert not (await setting.evaluations.get("running", setting.token("ann"))).checkpoints


async def test_a_list_has_scores_and_reads_each_report_once(setting: Setting) -> None:
    token = setting.token("ann")
    for _ in range(3):
        found, following = await setting.evaluations.list(10, "", token)
        assert [item.recommended_step for item in found] == [20, 0]
        assert following == "more"
    assert setting.tasks.asked_for_sources == 1


async def test_a_report_that_cannot_be_read_spoils_no_list(setting: Setting) -> None:
    setting.tasks.add("lost", "ann", "tasks/lost/output")
    found, _ = await setting.evaluations.list(10, "", setting.token("ann"))
    assert [item.task_id for item in found] == ["done", "running", "lost"]
    with pytest.raises(NotFound):
        await setting.evaluations.get("lost", setting.token("ann"))


async def test_a_summary_that_is_too_large_is_not_read(setting: Setting, store: ObjectStore) -> None:
    setting.tasks.add("large", "ann", "tasks/large/output")
    await store.put_bytes("tasks/large/output/summary.json", b" " * SUMMARY_BYTES + b"{}")
    with pytest.raises(FailedPrecondition, match="download its report"):
        await setting.evaluations.get("large", setting.token("ann"))
    found, _ = await setting.evaluations.list(10, "", setting.token("ann"))
    assert "large" in {item.task_id for item in found}


async def test_what_belongs_to_others_is_not_there(setting: Setting) -> None:
    await setting.evaluations.get("done", setting.token("ann"))
    for call in (
        setting.evaluations.get("done", setting.token("bob")),
        collected(setting, "done", "report.json", 0, "bob"),
    ):
        with pytest.raises(NotFound):
            await call
    setting.tasks.add("training", "ann", spec=spec_pb2.TaskSpec(finetune=spec_pb2.FinetuneSpec()))
    with pytest.raises(NotFound, match="is no evaluation"):
        await setting.evaluations.get("training", setting.token("ann"))


async def collected(setting: Setting, task_id: str, name: str, offset: int, user: str = "ann") -> tuple[bytes, int]:
    """The bytes of a file, and its whole size."""
    data, size = b"", 0
    async for piece in setting.evaluations.download(task_id, name, offset, setting.token(user)):
        data, size = data + piece.data, size or piece.total_size
    return data, size


async def test_a_report_is_downloaded_from_an_offset(setting: Setting) -> None:
    whole = REPORT
    assert await collected(setting, "done", "report.json", 0) == (whole, len(whole))
    assert await collected(setting, "done", "report.json", 40) == (whole[40:], len(whole))
    assert await collected(setting, "done", "report.json", len(whole)) == (b"", len(whole))
    with pytest.raises(InvalidArgument, match="beyond the end"):
        await collected(setting, "done", "report.json", len(whole) + 1)
    with pytest.raises(FailedPrecondition, match="RUNNING and has no report"):
        await collected(setting, "running", "report.json", 0)
    with pytest.raises(NotFound):
        await collected(setting, "done", "report.html", 0)
