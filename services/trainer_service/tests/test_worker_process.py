"""The whole service as a process: told to stop, killed, paused beyond its lease, cut off."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.trainer_service.tests.bench import JOBS, Bench, MakeSpec, open_gate
from services.workerkit.tests.desk import Desk, payloads
from tests.support.waiting import eventually
from tunesmith.task.v1 import spec_pb2, task_service_pb2

Service = subprocess.Popen[bytes]
StartService = Callable[..., Awaitable[Service]]


@pytest.fixture
async def start_service(bench: Bench, tmp_path: Path) -> AsyncIterator[StartService]:
    services: list[Service] = []

    async def start(**settings: str) -> Service:
        environment = {
            **os.environ,
            "PYTHONPATH": str(JOBS),
            "TUNESMITH_PORT": "0",
            "TUNESMITH_NATS_URL": bench.nats_url,
            "TUNESMITH_OBJECT_STORE_URL": f"file://{tmp_path}/objects",
            "TUNESMITH_TASK_SERVICE_TARGET": f"127.0.0.1:{bench.port}",
            "TUNESMITH_ALLOWED_ROOTS": str(tmp_path / "data"),
            "TUNESMITH_OUTPUT_ROOT": str(bench.outputs),
            "TUNESMITH_WORK_DIR": str(tmp_path / "work"),
            "TUNESMITH_POOL": bench.desk.pool,
            **settings,
        }
        log = tmp_path / f"service-{len(services)}.log"
        with log.open("wb") as output:
            command = [sys.executable, str(JOBS / "worker_process.py")]
            services.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))  # noqa: ASYNC220
        await eventually(lambda: "is warm" in log.read_text(), 30, "the service to be warm")
        return services[-1]

    yield start
    for service in services:
        service.kill()
        service.wait()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def use_saved(desk: Desk, task_id: str) -> None:
    """Lets the next attempt go on from what was saved."""
    saved = payloads(desk.received[task_id], "checkpoint_saved")
    desk.records[task_id].resume_from = sorted(saved, key=lambda checkpoint: -checkpoint.step)


def slow(make_spec: MakeSpec) -> spec_pb2.FinetuneSpec:
    """Six steps, saved after 2, 4 and 6; waits after 3."""
    return make_spec({"steps": 6, "save_steps": 2, "gates": {"3": "go"}})


async def test_told_to_stop_it_saves_and_gives_the_task_back(
    desk: Desk, make_spec: MakeSpec, start_service: StartService
) -> None:
    service = await start_service()
    spec = slow(make_spec)
    task_id = await desk.submit(spec)
    pid = await desk.trained_to(task_id, 3)
    service.send_signal(signal.SIGTERM)
    received = await desk.facts_until(task_id, "released")
    assert "shutting down" in payloads(received, "released")[0].reason
    assert max(checkpoint.step for checkpoint in payloads(received, "checkpoint_saved")) >= 3
    await eventually(lambda: gone(pid) and service.poll() == 0)
    assert "given back" in (await desk.log(task_id))[-1]
    assert await desk.waiting_messages(task_id) == 1
    open_gate(spec, "go")
    use_saved(desk, task_id)
    await start_service()
    received = await desk.facts_until(task_id, "completed")
    assert payloads(received, "child_started")[-1].resumed_step >= 3


async def test_what_cannot_be_saved_in_time_is_given_back_all_the_same(
    desk: Desk, make_spec: MakeSpec, start_service: StartService
) -> None:
    service = await start_service(TUNESMITH_RELEASE_SECONDS="0.3")
    task_id = await desk.submit(make_spec({"steps": 9, "deaf": True, "gates": {"3": "never"}}))
    pid = await desk.trained_to(task_id, 3)
    service.send_signal(signal.SIGTERM)
    received = await desk.facts_until(task_id, "released")
    assert not payloads(received, "checkpoint_saved")
    await eventually(lambda: gone(pid) and service.poll() == 0)


async def test_killed_it_takes_everything_with_it_and_another_goes_on(
    desk: Desk, make_spec: MakeSpec, start_service: StartService, tmp_path: Path
) -> None:
    service = await start_service(TUNESMITH_LEASE_SECONDS="1")
    spec = slow(make_spec)
    task_id = await desk.submit(spec)
    await desk.facts_until(task_id, "checkpoint_saved")
    (started,) = payloads(desk.received[task_id], "child_started")
    (left,) = (tmp_path / "work").iterdir()
    service.kill()
    await eventually(lambda: gone(started.pid))
    open_gate(spec, "go")
    use_saved(desk, task_id)
    await start_service(TUNESMITH_LEASE_SECONDS="1")
    received = await desk.facts_until(task_id, "completed")
    assert payloads(received, "child_started")[-1].resumed_step == 2
    assert received[-1].attempt == 2
    assert not left.exists()


async def test_paused_beyond_its_lease_it_asks_before_it_speaks(
    desk: Desk, make_spec: MakeSpec, start_service: StartService, tmp_path: Path, bench: Bench
) -> None:
    """While it sleeps its child goes on and ends; meanwhile another worker has the task."""
    desk.lease_seconds = 1.0
    service = await start_service()
    spec = slow(make_spec)
    task_id = await desk.submit(spec)
    await desk.facts_until(task_id, "checkpoint_saved")
    await desk.trained_to(task_id, 3)
    service.send_signal(signal.SIGSTOP)
    paused = time.monotonic()
    open_gate(spec, "go")
    (scratch,) = (tmp_path / "work").glob(f"*/{task_id}-1")
    await eventually((scratch / "output" / "model.safetensors").exists)
    await eventually(lambda: time.monotonic() - paused > desk.lease_seconds)
    record = desk.records[task_id]
    record.task.attempt, record.worker = 2, "another"
    told, answered = len(desk.received[task_id]), len(record.answered)
    objects = sorted((tmp_path / "objects").rglob("*"))
    service.send_signal(signal.SIGCONT)
    await eventually(lambda: not scratch.exists())
    assert set(record.answered[answered:]) == {task_service_pb2.DIRECTIVE_ABANDON}
    assert sorted((tmp_path / "objects").rglob("*")) == objects
    assert not list(bench.outputs.glob("*"))
    with pytest.raises(TimeoutError):
        await desk.facts_until(task_id, "completed", seconds=0.5)
    assert len(desk.received[task_id]) == told


async def test_paused_for_a_moment_it_goes_on(desk: Desk, make_spec: MakeSpec, start_service: StartService) -> None:
    desk.lease_seconds = 0.6
    service = await start_service()
    spec = slow(make_spec)
    task_id = await desk.submit(spec)
    await desk.trained_to(task_id, 3)
    service.send_signal(signal.SIGSTOP)
    paused = time.monotonic()
    await eventually(lambda: time.monotonic() - paused > desk.lease_seconds)
    service.send_signal(signal.SIGCONT)
    open_gate(spec, "go")
    received = await desk.facts_until(task_id, "completed")
    assert {fact.attempt for fact in received} == {1}


async def test_the_service_itself_never_loads_the_training_libraries() -> None:
    program = (
        "import sys, trainer_service.setup; "
        "print([name for name in ('torch', 'transformers', 'peft', 'trl', 'datasets', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: ASYNC221
    assert done.stdout.strip() == "[]"
