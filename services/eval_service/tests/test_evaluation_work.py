"""Evaluations by a real worker: results, crashes, stops, and damage (T26, M15, F40)."""

import json
import os
import signal
from pathlib import Path

import pytest

from services.eval_service.tests.bench import Bench
from services.workerkit.tests.desk import Desk, payloads
from tests.support.nats import NatsServer
from tunesmith.task.v1 import spec_pb2, task_service_pb2

pytestmark = pytest.mark.timeout(240)  # the libraries are loaded once for each test

SECONDS = 120.0
QUICK = spec_pb2.EvaluateSpec(
    source_task_id="a-training",
    include_base_model=True,
    sampling=spec_pb2.SamplingParameters(max_tokens=4),
    scores=["perplexity", "token_f1"],
)


async def submit(desk: Desk, spec: spec_pb2.EvaluateSpec, source: task_service_pb2.TaskSource | None) -> str:
    """Puts an evaluation into the queue."""
    task_id = await desk.submit(spec)
    desk.records[task_id].source = source
    return task_id


async def test_an_evaluation_survives_the_death_of_its_child_and_leaves_its_report(
    bench: Bench, desk: Desk, desk_port: int, shared_nats_server: NatsServer
) -> None:
    source = bench.source()
    for step in (10, 20):
        await bench.add_adapter(source, step)
    final = source.checkpoints.pop()
    trained = bench.data.parent / "trained"
    trained.mkdir()
    source.output.CopyFrom(task_service_pb2.TaskOutput(prefix=final.prefix, step=20, directory=str(trained)))
    async with bench.worker(desk, desk_port, shared_nats_server.url):
        long = spec_pb2.EvaluateSpec()
        long.CopyFrom(QUICK)
        long.sampling.max_tokens = 100_000
        task_id = await submit(desk, long, source)
        received = await desk.facts_until(task_id, "metrics", SECONDS)
        os.kill(payloads(received, "child_started")[0].pid, signal.SIGKILL)
        failed = payloads(await desk.facts_until(task_id, "failed", SECONDS), "failed")[0]
        assert failed.retryable
        assert not list(trained.iterdir())
        desk.records[task_id].task.spec.evaluate.CopyFrom(QUICK)
        desk.records[task_id].task.progress.percent = 60.0
        await desk.dispatch(task_id)
        received = await desk.facts_until(task_id, "completed", SECONDS)
    second = [fact for fact in received if fact.attempt == 2]
    assert payloads(second, "progressed")[0].percent == 0
    storing = [told for told in payloads(second, "progressed") if told.phase == "storing the report"]
    assert all(0 < told.percent < 100 for told in storing)
    completed = payloads(received, "completed")[0]
    assert (completed.progress.percent, completed.progress.step, completed.progress.total_steps) == (100, 100, 100)
    placed = Path(completed.output_dir)
    assert placed == trained / "evaluations" / task_id
    report = json.loads((placed / "report.json").read_text())
    assert [item["step"] for item in report["checkpoints"]] == [0, 10, 20]
    assert report["source_name"] == "a training"
    stored = await bench.store.get_bytes(f"{completed.output_prefix}/report.html")
    assert stored == (placed / "report.html").read_bytes()
    points = [point for batch in payloads(received, "metrics") for point in batch.points]
    assert {(point.step, point.name) for point in points} >= {(10, "perplexity"), (20, "token_f1"), (20, "total")}


async def test_a_stop_ends_in_order_with_nothing_to_see(
    bench: Bench, desk: Desk, desk_port: int, shared_nats_server: NatsServer
) -> None:
    source = bench.source()
    await bench.add_adapter(source, 10)
    spec = spec_pb2.EvaluateSpec()
    spec.CopyFrom(QUICK)
    spec.sampling.max_tokens = 100_000
    async with bench.worker(desk, desk_port, shared_nats_server.url):
        task_id = await submit(desk, spec, source)
        await desk.facts_until(task_id, "metrics", SECONDS)
        await desk.steer(task_id, task_service_pb2.DIRECTIVE_STOP_AND_SAVE)
        received = await desk.facts_until(task_id, "stopped", SECONDS)
    assert payloads(received, "stopped")[0].checkpoint_step == 0
    assert not (bench.outputs / task_id).exists()
    assert [item async for item in bench.store.list(f"tasks/{task_id}/")] == []


async def test_what_cannot_be_scored_fails_with_the_reason(
    bench: Bench, desk: Desk, desk_port: int, shared_nats_server: NatsServer
) -> None:
    source = bench.source()
    await bench.add_adapter(source, 10)
    damaged = source.checkpoints[0].prefix + "/adapter_model.safetensors"
    missing = spec_pb2.EvaluateSpec(source_task_id="a-training", checkpoint_steps=[99])
    async with bench.worker(desk, desk_port, shared_nats_server.url):
        failures = {}
        for name, spec, given in (
            ("missing", missing, source),
            ("nothing", QUICK, None),
            ("unheld", QUICK, bench.source(bench.finetune(eval_ratio=0.0))),
        ):
            task_id = await submit(desk, spec, given)
            failures[name] = payloads(await desk.facts_until(task_id, "failed", SECONDS), "failed")[0]
        await bench.store.put_bytes(damaged, b"other")
        task_id = await submit(desk, QUICK, source)
        failures["damaged"] = payloads(await desk.facts_until(task_id, "failed", SECONDS), "failed")[0]
    assert {name: failed.error.reason for name, failed in failures.items()} == {
        "missing": "CHECKPOINT_MISSING",
        "nothing": "SOURCE_GONE",
        "unheld": "SPEC_INVALID",
        "damaged": "CHECKPOINT_DAMAGED",
    }
    assert "99" in failures["missing"].error.message
    assert "adapter_model.safetensors" in failures["damaged"].error.message
    assert not any(failed.retryable for failed in failures.values())
