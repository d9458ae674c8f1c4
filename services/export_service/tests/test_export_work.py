"""Exports by a real worker: results, crashes, stops, and damage (rows T31, T32, M17; fault 59)."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from export_service.results import RESULT, Result
from services.export_service.tests.bench import Bench
from services.workerkit.tests.desk import Desk, payloads
from tests.support.nats import NatsServer
from tunesmith.task.v1 import spec_pb2, task_service_pb2

pytestmark = pytest.mark.timeout(240)  # the libraries are loaded once for each test

SECONDS = 120.0
Source = task_service_pb2.TaskSource


def spec(form: "spec_pb2.ExportFormat.ValueType", types: tuple[str, ...] = (), step: int = 0) -> spec_pb2.ExportSpec:
    return spec_pb2.ExportSpec(
        source_task_id="a-training", format=form, quantizations=types, checkpoint_step=step, modelfile=False
    )


async def submit(desk: Desk, wanted: spec_pb2.ExportSpec, source: Source) -> str:
    """Puts an export into the queue."""
    task_id = await desk.submit(wanted)
    desk.records[task_id].source = source
    return task_id


async def nothing_is_visible(bench: Bench, task_id: str) -> bool:
    """Neither in the output directory nor in the object store."""
    stored = [item async for item in bench.store.list(f"tasks/{task_id}/")]
    return not stored and not (bench.outputs / task_id).exists()


async def test_two_exports_of_one_task_side_by_side_leave_their_files(
    bench: Bench, desk: Desk, desk_port: int, shared_nats_server: NatsServer, source: Source
) -> None:
    async with bench.worker(desk, desk_port, shared_nats_server.url, slots=2):
        wanted = {
            "merged": spec(spec_pb2.EXPORT_FORMAT_MERGED),
            "gguf": spec(spec_pb2.EXPORT_FORMAT_GGUF, ("Q8_0",), 8),
        }
        ids = {name: await submit(desk, item, source) for name, item in wanted.items()}
        received = await asyncio.gather(*(desk.facts_until(task_id, "completed", SECONDS) for task_id in ids.values()))
    for (name, task_id), told in zip(ids.items(), received, strict=True):
        completed = payloads(told, "completed")[0]
        progress = completed.progress
        assert (progress.percent, progress.step, progress.total_steps) == (100, 100, 100)
        placed = Path(completed.output_dir)
        assert placed == bench.outputs / task_id
        result = Result.from_json(await bench.store.get_bytes(f"{completed.output_prefix}/{RESULT}"))
        assert result.artifacts and all(check.passed for check in result.checks)
        for artifact in result.artifacts:
            assert (placed / artifact.name).stat().st_size == artifact.size
            assert (await bench.store.stat(f"{completed.output_prefix}/{artifact.name}")) is not None
        names = {artifact.name for artifact in result.artifacts}
        assert ("merged_model-Q8_0.gguf" if name == "gguf" else "model.safetensors") in names
        percents = [fact.progressed.percent for fact in told if fact.WhichOneof("payload") == "progressed"]
        assert any(0 < percent < 100 for percent in percents)
        storing = [fact for fact in payloads(told, "progressed") if fact.phase == "storing the export"]
        assert all(0 < fact.percent < 100 for fact in storing)


async def test_a_killed_child_leaves_nothing_and_the_next_attempt_starts_clean(
    bench: Bench, desk: Desk, desk_port: int, shared_nats_server: NatsServer, source: Source
) -> None:
    async with bench.worker(desk, desk_port, shared_nats_server.url) as worker:
        task_id = await submit(desk, spec(spec_pb2.EXPORT_FORMAT_GGUF, ("F32", "F16", "Q8_0")), source)
        received = await desk.facts_until(task_id, "child_started", SECONDS)
        os.kill(payloads(received, "child_started")[0].pid, signal.SIGKILL)
        failed = payloads(await desk.facts_until(task_id, "failed", SECONDS), "failed")[0]
        assert failed.retryable
        assert await nothing_is_visible(bench, task_id)
        desk.records[task_id].task.progress.percent = 60.0
        await desk.dispatch(task_id)
        received = await desk.facts_until(task_id, "completed", SECONDS)
        second = [fact for fact in received if fact.attempt == 2]
        assert payloads(second, "progressed")[0].percent < 60
        assert not [path for path in worker.scratch.iterdir() if path.name == f"{task_id}-1"]
    assert len(payloads(received, "completed")) == 1
    assert sorted(path.name for path in bench.outputs.iterdir()) == [task_id]
    prefixes = {item.key.split("/")[3] async for item in bench.store.list(f"tasks/{task_id}/")}
    assert prefixes == {"2"}


async def test_a_stop_ends_in_order_with_nothing_to_see(
    bench: Bench, desk: Desk, desk_port: int, shared_nats_server: NatsServer, source: Source
) -> None:
    async with bench.worker(desk, desk_port, shared_nats_server.url):
        task_id = await submit(desk, spec(spec_pb2.EXPORT_FORMAT_GGUF, ("F32", "F16", "Q8_0")), source)
        await desk.facts_until(task_id, "child_started", SECONDS)
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_SAVE)
        received = await desk.facts_until(task_id, "stopped", SECONDS)
    assert payloads(received, "stopped")[0].checkpoint_step == 0
    assert await nothing_is_visible(bench, task_id)


async def test_what_cannot_be_exported_fails_with_the_reason(
    bench: Bench, desk: Desk, desk_port: int, shared_nats_server: NatsServer, source: Source
) -> None:
    merged = spec_pb2.EXPORT_FORMAT_MERGED
    empty = bench.source()
    stranger = Source()
    stranger.CopyFrom(source)
    stranger.spec.finetune.base_model = "task:a-base"
    stranger.base_model_prefix = (await bench.upload(bench.data.parent, "output", task="a-base")).prefix
    async with bench.worker(desk, desk_port, shared_nats_server.url):
        failures = {}
        for name, wanted, given in (
            ("missing", spec(merged, step=99), source),
            ("nothing", spec(merged), empty),
            ("stranger", spec(merged), stranger),
        ):
            task_id = await submit(desk, wanted, given)
            failures[name] = payloads(await desk.facts_until(task_id, "failed", SECONDS), "failed")[0]
        damaged = f"{source.checkpoints[0].prefix}/adapter_model.safetensors"
        raw = await bench.store.get_bytes(damaged)
        await bench.store.put_bytes(damaged, raw[:-1] + bytes([raw[-1] ^ 1]))
        task_id = await submit(desk, spec(merged, step=8), source)
        failures["damaged"] = payloads(await desk.facts_until(task_id, "failed", SECONDS), "failed")[0]
    assert {name: failed.error.reason for name, failed in failures.items()} == {
        "missing": "SPEC_INVALID",
        "nothing": "SPEC_INVALID",
        "stranger": "SPEC_INVALID",
        "damaged": "CHECKPOINT_DAMAGED",
    }
    assert "99" in failures["missing"].error.message
    assert "adapter_model.safetensors" in failures["damaged"].error.message
    assert not any(failed.retryable for failed in failures.values())
