"""Metric points a second until they are durable and readable, and how late a log line reaches an SSE reader.

    python -m benchmarks.streams

The script plays the worker: it claims a task and says what a worker would say. Readers are ordinary HTTP clients.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.report import percentile, print_table, verdict
from benchmarks.workload import TrainingWorkload
from servicekit import subjects
from servicekit.bus import EventBus, Outgoing
from servicekit.grpc_client import open_channel
from tests.support.platform import Platform
from tunesmith.events.v1.fact_pb2 import Fact, LogBatch, MetricsReported
from tunesmith.task.v1.task_pb2 import LogLine, MetricPoint
from tunesmith.task.v1.task_service_pb2 import ClaimTaskRequest
from tunesmith.task.v1.task_service_pb2_grpc import TaskServiceStub

POINTS, POINTS_PER_FACT = 200_000, 500
LINES_PER_SECOND, LOG_SECONDS, BATCH_SECONDS = 1000, 20, 0.05


def now() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp


@asynccontextmanager
async def worker(platform: Platform, task_id: str) -> AsyncIterator[EventBus]:
    """The bus of a worker that has claimed a task."""
    ports, secrets = platform.ports(), platform.worker_secrets()
    bus = await EventBus.connect(
        f"nats://127.0.0.1:{ports['nats']}", name="bench", user=secrets.nats_user, password=secrets.nats_password
    )
    try:
        async with open_channel(f"127.0.0.1:{ports['task-service']}", secrets.token) as channel:
            await TaskServiceStub(channel).ClaimTask(ClaimTaskRequest(task_id=task_id, attempt=1, worker="bench"))
            yield bus
    finally:
        await bus.close()


def fact(task_id: str, sequence: int) -> Outgoing:
    """A fact with POINTS_PER_FACT points of two metrics."""
    stamp = now()
    first = (sequence - 1) * POINTS_PER_FACT // 2
    points = [
        MetricPoint(name=name, step=first + offset, value=1.0 / (first + offset + 1), time=stamp)
        for offset in range(POINTS_PER_FACT // 2)
        for name in ("loss", "learning_rate")
    ]
    message = Fact(
        task_id=task_id, attempt=1, sequence=sequence, time=stamp, metrics=MetricsReported(points=points)
    ).SerializeToString()
    return Outgoing(subjects.fact(task_id), message, f"{task_id}-1-{sequence}")


async def points_per_second(platform: Platform, task_id: str) -> float:
    """From the first publish until the last point can be read over HTTP."""
    facts = [fact(task_id, sequence) for sequence in range(1, POINTS // POINTS_PER_FACT + 1)]
    last_step = POINTS // 2 - 1
    async with worker(platform, task_id) as bus, httpx.AsyncClient(trust_env=False, timeout=60) as http:
        started = time.perf_counter()
        for first in range(0, len(facts), 50):
            await bus.publish_all(facts[first : first + 50])
        while True:
            response = await http.get(
                f"{platform.url}/v1/tasks/{task_id}/metrics",
                params={"after_step": last_step - 1},
                headers={"Authorization": f"Bearer {platform.token()}"},
            )
            series = response.raise_for_status().json().get("series", [])
            if len(series) == 2 and all(int(item["steps"][-1]) == last_step for item in series):
                return POINTS / (time.perf_counter() - started)
            await asyncio.sleep(0.02)


async def log_delays(platform: Platform, task_id: str) -> list[float]:
    """Milliseconds from the writing of each line to its arrival at an SSE reader."""
    total = LINES_PER_SECOND * LOG_SECONDS
    delays: list[float] = []
    listening = asyncio.Event()

    async def read() -> None:
        url = f"{platform.url}/v1/tasks/{task_id}/log:tail"
        headers = {"Authorization": f"Bearer {platform.token()}", "Accept": "text/event-stream"}
        async with (
            httpx.AsyncClient(trust_env=False, timeout=60) as http,
            http.stream("GET", url, headers=headers) as response,
        ):
            response.raise_for_status()
            listening.set()
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                arrived = time.time()
                lines = json.loads(line[5:]).get("lines", [])
                delays.extend((arrived - float(item["text"].split()[0])) * 1000 for item in lines)
                if len(delays) >= total:
                    return

    async with worker(platform, task_id) as bus, asyncio.TaskGroup() as group:
        group.create_task(read())
        await listening.wait()
        per_batch = int(LINES_PER_SECOND * BATCH_SECONDS)
        started = time.perf_counter()
        for number in range(total // per_batch):
            stamp = now()
            lines = [LogLine(time=stamp, text=f"{time.time()} step {number}", attempt=1) for _ in range(per_batch)]
            batch = LogBatch(task_id=task_id, attempt=1, lines=lines)
            await bus.publish(subjects.log(task_id), batch.SerializeToString())
            await asyncio.sleep(max(0.0, started + (number + 1) * BATCH_SECONDS - time.perf_counter()))
    return delays


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Platform(Path(directory) / "data") as platform:
        workload = TrainingWorkload.create(platform.data_dir / "datasets" / "bench")
        with platform.client() as client:
            tasks = []
            for name in ("points", "lines"):
                request = workload.request(name, steps=10)
                request.pool = "bench"
                tasks.append(client.tasks.create(request).id)
        rate = asyncio.run(points_per_second(platform, tasks[0]))
        delays = asyncio.run(log_delays(platform, tasks[1]))
    print_table(
        "Streams",
        ["", "amount", "measured", "figure"],
        [
            [
                "metric points, durable and readable",
                f"{POINTS:,}",
                f"{rate:,.0f}/s",
                verdict(rate, 20_000, at_most=False),
            ],
            ["log line to SSE reader, median", f"{len(delays):,}", f"{percentile(delays, 0.5):.0f} ms", ""],
            [
                "log line to SSE reader, p99",
                "",
                f"{percentile(delays, 0.99):.0f} ms",
                verdict(percentile(delays, 0.99), 200, at_most=True),
            ],
        ],
    )


if __name__ == "__main__":
    main()
