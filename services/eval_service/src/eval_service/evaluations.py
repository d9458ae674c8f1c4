"""Evaluations as clients see them: tasks of the task service, and what their stored reports say."""

import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from servicekit.errors import NotFound
from servicekit.objects import ObjectStore
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2_grpc
from workerkit.results import ResultKind, TaskResults, check_offset, damaged

SUMMARY = "summary.json"
PIECE_BYTES = 1 << 20


class Evaluations:
    """Creates, finds and reads evaluations, each call with the token of the one who asks."""

    def __init__(self, tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", store: ObjectStore) -> None:
        self._store = store
        self._results = TaskResults(tasks, store, KIND)

    async def create(self, name: str, spec: spec_pb2.EvaluateSpec, token: str) -> pb.Evaluation:
        """Creates the task. Raises what the task service finds wrong, by the fields of CreateEvaluationRequest."""
        return evaluation_of(await self._results.create(name, spec_pb2.TaskSpec(evaluate=spec), token), None)

    async def get(self, task_id: str, token: str) -> pb.Evaluation:
        """An evaluation with its scores. NotFound for other tasks."""
        task = await self._results.task(task_id, token)
        return evaluation_of(task, await self._results.result(task, token))

    async def list(self, page_size: int, page_token: str, token: str) -> tuple[list[pb.Evaluation], str]:
        """A page of evaluations with their scores, newest first, and the token of the next one."""
        found, following = await self._results.page(page_size, page_token, token)
        return [evaluation_of(task, scored) for task, scored in found], following

    async def download(
        self, task_id: str, name: str, offset: int, token: str
    ) -> AsyncIterator[pb.DownloadReportResponse]:
        """The bytes of a report's file from an offset; read from its start it is compared with its hash.

        FailedPrecondition before there is one, Internal at the end of one that is damaged.
        """
        task = await self._results.task(task_id, token)
        key = f"{await self._results.output(task, token)}/{name}"
        info = await self._store.stat(key)
        if info is None:
            raise NotFound(f"evaluation {task_id} has no {name}")
        check_offset(offset, info.size, name)
        expected, digest = await self._results.sha256(task, name, token), hashlib.sha256()
        yield pb.DownloadReportResponse(total_size=info.size)
        async for piece in self._store.read(key, offset):
            digest.update(piece)
            for start in range(0, len(piece), PIECE_BYTES):
                yield pb.DownloadReportResponse(data=piece[start : start + PIECE_BYTES])
        if expected and offset == 0 and digest.hexdigest() != expected:
            raise damaged(name, f"evaluation {task_id}", "it does not have the SHA-256 it was saved with")


def evaluation_of(task: task_pb2.Task, scored: pb.Evaluation | None) -> pb.Evaluation:
    """A task as a message, with what its report says where there is one."""
    found = pb.Evaluation(
        task_id=task.id, name=task.name, spec=task.spec.evaluate, state=task.state, create_time=task.create_time
    )
    if scored is not None:
        found.MergeFrom(scored)
    return found


def scored_by(summary: bytes) -> pb.Evaluation:
    """What a summary says, in the fields of an evaluation. Raises as ResultKind allows."""
    report = orjson.loads(summary)
    advice = report["recommendation"]
    return pb.Evaluation(
        samples=report["samples"],
        recommended_step=advice["step"],
        recommendation=pb.Recommendation(
            step=advice["step"],
            distinguishable=advice["distinguishable"],
            equivalent_steps=advice["equivalent_steps"],
            worse_than_base_steps=advice["worse_than_base_steps"],
            text=advice["text"],
        ),
        checkpoints=[_scores_of(item) for item in report["checkpoints"]],
    )


KIND = ResultKind(
    work="evaluate",
    noun="evaluation",
    made="report",
    file=SUMMARY,
    parse=scored_by,
    none_reason="NO_REPORT",
    most_bytes=4 << 20,
    large_reason="SUMMARY_TOO_LARGE",
    large_advice="download its report instead",
)


def _scores_of(item: Mapping[str, Any]) -> pb.CheckpointScores:
    """Scores that are undefined are left out; those of suites have no interval."""
    values = [value for value in item["values"] if value["value"] is not None]
    scores = {value["name"]: value["value"] for value in values}
    scores |= {f"suite:{name}": value for name, value in item["suites"].items()}
    # Reports of former versions have the total alone.
    total, total_low, total_high = _with_interval(item.get("total"), item.get("total_low"), item.get("total_high"))
    return pb.CheckpointScores(
        step=item["step"],
        base_model=item["base_model"],
        total=total,
        total_low=total_low,
        total_high=total_high,
        band=item.get("band", ""),
        scores=scores,
        values=[_value_of(value) for value in values],
    )


def _value_of(value: Mapping[str, Any]) -> pb.ScoreValue:
    number, low, high = _with_interval(value["value"], value.get("low"), value.get("high"))
    return pb.ScoreValue(name=value["name"], value=number, low=low, high=high, samples=value.get("samples", 0))


def _with_interval(value: float | None, low: float | None, high: float | None) -> tuple[float, float, float]:
    """A number and the ends of its interval, which are the number itself where the interval is not known."""
    number = value or 0.0
    return (number, number, number) if low is None or high is None else (number, low, high)
