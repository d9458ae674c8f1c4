"""A worker of a kind that does not train: real queue, real store, children of its own."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelkit.checkpoints import verify
from servicekit.bus import EventBus
from servicekit.objects import ObjectStore
from services.workerkit.tests.desk import Desk, RunningWorker, payloads, running_worker
from tests.support.nats import NatsServer
from tests.support.waiting import eventually
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit.artifacts import Origin, fetch
from workerkit.child_events import Done
from workerkit.crashes import Terms
from workerkit.endings import Ending
from workerkit.fork_launcher import ForkLauncher, running_launcher
from workerkit.intent import Control
from workerkit.lease import Lease
from workerkit.reporter import Reporter
from workerkit.running import ChildRun, brought_to_an_end
from workerkit.storing import ResultStore
from workerkit.supervision import Patience

JOBS = Path(__file__).parent / "jobs"
TERMS = Terms("export process", ("export a smaller model",))
PATIENCE = Patience(stall_seconds=30.0, grace_seconds=10.0)


@dataclass
class Exporting:
    """The work of one attempt, made of what every kind of work has in common. The file name says how it ends."""

    store: ObjectStore
    launcher: ForkLauncher
    outputs: Path
    claim: task_service_pb2.ClaimTaskResponse
    folder: Path
    control: Control
    lease: Lease
    reporter: Reporter

    async def run(self) -> Ending:
        """How the attempt ended."""
        return await brought_to_an_end(self.control, self._export())

    async def _export(self) -> Ending:
        task = self.claim.task
        self.folder.mkdir(parents=True, exist_ok=True)
        job = {"end": task.spec.export.source_task_id, "name": "model.gguf", "content": "weights"}
        (self.folder / "job.json").write_text(json.dumps(job))
        child = ChildRun(self.launcher, self.control, self.lease, self.reporter, PATIENCE, TERMS)
        result = await child.run(self.folder, {"TUNESMITH_TASK_ID": task.id})
        if not isinstance(result.verdict, Done):
            return child.ending(result)
        output = child.output(result.verdict, self.folder / "output")
        origin = Origin(task.id, task.attempt, task.run, "a base model")
        results = ResultStore(self.store, origin, self.control, self.lease, self.reporter, "the export")
        return await results.keep(output, self.outputs / task.id, step=result.verdict.step)


@pytest.fixture
def desk(bus: EventBus, desk: Desk) -> Desk:
    desk.kind = "export"
    return desk


@pytest.fixture
async def worker(
    desk: Desk,
    desk_port: int,
    shared_nats_server: NatsServer,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[RunningWorker]:
    """A worker whose fork server comes with the first child."""
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    await store.prepare()
    async with running_launcher(preload="light_preload", entry="other_jobs:run", warm_seconds=60) as launcher:

        def make(
            claim: task_service_pb2.ClaimTaskResponse,
            folder: Path,
            control: Control,
            lease: Lease,
            reporter: Reporter,
        ) -> Exporting:
            return Exporting(store, launcher, tmp_path / "outputs", claim, folder, control, lease, reporter)

        url = shared_nats_server.url
        async with running_worker(desk, desk_port, url, tmp_path / "work", launcher, make) as worker:
            yield worker
    await store.close()


async def settled(desk: Desk, task_id: str, worker: RunningWorker) -> None:
    """The message is off the queue, and nothing is left of the attempt."""

    async def empty() -> bool:
        return await desk.waiting_messages(task_id) == 0

    await eventually(empty)
    await eventually(lambda: not any(worker.scratch.iterdir()))


def spec(end: str) -> spec_pb2.ExportSpec:
    return spec_pb2.ExportSpec(source_task_id=end)


async def test_a_result_is_stored_whole_and_placed(
    worker: RunningWorker, desk: Desk, store: ObjectStore, tmp_path: Path
) -> None:
    task_id = await desk.submit(spec("done"))
    received = await desk.facts_until(task_id, "completed")
    (completed,) = payloads(received, "completed")
    await settled(desk, task_id, worker)
    target = tmp_path / "outputs" / task_id
    assert completed.output_dir == str(target)
    assert completed.progress.percent == 100.0
    assert verify(target).step == 7
    fetched = tmp_path / "fetched"
    await fetch(store, completed.output_prefix, fetched, manifest_sha256=completed.manifest_sha256)
    assert (fetched / "model.gguf").read_text() == (target / "model.gguf").read_text() == "weights"
    (measured,) = [point for batch in payloads(received, "metrics") for point in batch.points]
    assert (measured.name, measured.value) == ("parity", 1.0)
    assert any(f"completed; the export is in {target}" in line for line in await desk.log(task_id))


async def test_a_stop_ends_the_child_and_leaves_nothing_to_see(
    worker: RunningWorker, desk: Desk, store: ObjectStore, tmp_path: Path
) -> None:
    task_id = await desk.submit(spec("stopped"))
    await desk.facts_until(task_id, "child_started")
    await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_SAVE)
    (stopped,) = payloads(await desk.facts_until(task_id, "stopped"), "stopped")
    await settled(desk, task_id, worker)
    assert stopped.checkpoint_step == 0
    assert not (tmp_path / "outputs").exists()
    assert [info async for info in store.list(f"tasks/{task_id}/")] == []


async def test_a_worker_that_leaves_gives_the_task_back(worker: RunningWorker, desk: Desk) -> None:
    task_id = await desk.submit(spec("stopped"))
    await desk.facts_until(task_id, "child_started")
    worker.stop.set()
    await desk.facts_until(task_id, "released")


@pytest.mark.parametrize(
    ("end", "reason", "words", "retryable"),
    [
        ("crashed", "CHILD_CRASHED", "the export process was ended by signal 11 (SIGSEGV)", True),
        ("refused", "INVALID_SPEC", "this cannot be exported", False),
        ("broken", "EXPORT_FAILED", "RuntimeError: nobody expected this", True),
        ("memory", "OUT_OF_MEMORY", "What helps: export a smaller model", False),
    ],
)
async def test_a_child_that_fails_is_explained(
    worker: RunningWorker, desk: Desk, tmp_path: Path, end: str, reason: str, words: str, retryable: bool
) -> None:
    task_id = await desk.submit(spec(end))
    (failed,) = payloads(await desk.facts_until(task_id, "failed"), "failed")
    await settled(desk, task_id, worker)
    assert failed.error.reason == reason
    assert words in failed.error.message
    assert failed.retryable == retryable
    assert not (tmp_path / "outputs").exists()


async def test_a_message_of_another_kind_is_not_taken(worker: RunningWorker, desk: Desk) -> None:
    other = Desk(desk.bus, desk.pool, "evaluate")
    foreign = await other.submit(spec_pb2.EvaluateSpec(source_task_id="done"))
    own = await desk.submit(spec("done"))
    await desk.facts_until(own, "completed")
    assert worker.deliveries == [own]
    assert await other.waiting_messages(foreign) == 1
