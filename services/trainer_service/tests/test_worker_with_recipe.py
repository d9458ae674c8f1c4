"""A worker with the real recipe: a small model is trained, its child is killed, and the curve goes on unbroken."""

import json
import os
import signal
from pathlib import Path

import pytest

from modelkit.scratch import build
from services.trainer_service.tests.bench import Bench, MakeSpec
from services.workerkit.tests.desk import Desk, payloads
from tests.support.waiting import eventually
from trainer_service.setup import ENTRY, PRELOAD
from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import spec_pb2

pytestmark = pytest.mark.timeout(180)  # the libraries are loaded once for each test

STEPS = 40
SECONDS = 80.0


@pytest.fixture
def real_spec(make_spec: MakeSpec, tmp_path: Path) -> spec_pb2.FinetuneSpec:
    spec = make_spec({})
    data = Path(spec.dataset.path) / "train.jsonl"
    rows = [{"instruction": f"What is {n} and one?", "output": f"It is {n + 1}."} for n in range(64)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "data" / "scratch-model"
    build(folder, family="llama", corpus=data, hidden_size=64, layers=2, vocab_size=320)
    spec.base_model = str(folder)
    spec.training.MergeFrom(
        spec_pb2.TrainingParameters(
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=2,
            save_strategy=spec_pb2.INTERVAL_STRATEGY_STEPS,
        )
    )
    return spec


def losses(received: list[facts.Fact]) -> dict[int, float]:
    points = [point for batch in payloads(received, "metrics") for point in batch.points]
    return {point.step: point.value for point in points if point.name == "loss"}


async def test_a_killed_training_ends_as_if_nothing_had_happened(
    bench: Bench, desk: Desk, real_spec: spec_pb2.FinetuneSpec
) -> None:
    bench.preload, bench.entry = PRELOAD, ENTRY
    async with bench.worker():
        reference = await desk.submit(real_spec)
        expected = losses(await desk.facts_until(reference, "completed", SECONDS))
        assert sorted(expected) == list(range(1, STEPS + 1))
        desk.received[reference].clear()
        killed = await desk.submit(real_spec)
        first = await desk.facts_until(killed, "checkpoint_saved", SECONDS)
        os.kill(payloads(first, "child_started")[0].pid, signal.SIGKILL)
        first = await desk.facts_until(killed, "failed")
        saved = payloads(first, "checkpoint_saved")
        desk.records[killed].resume_from = sorted(saved, key=lambda checkpoint: -checkpoint.step)
        await desk.dispatch(killed)
        received = await desk.facts_until(killed, "completed", SECONDS)
    assert losses(received) == pytest.approx(expected, rel=1e-5)
    weights = [(bench.outputs / task_id / "model.safetensors").read_bytes() for task_id in (reference, killed)]
    assert weights[0] == weights[1]
    assert any("loss" in line or "row" in line for line in await desk.log(killed, 2))


async def test_a_stop_saves_a_checkpoint_to_go_on_from(
    bench: Bench, desk: Desk, real_spec: spec_pb2.FinetuneSpec
) -> None:
    bench.preload, bench.entry = PRELOAD, ENTRY
    real_spec.training.max_steps = 100_000
    real_spec.training.save_steps = 1_000_000
    task_id = await desk.submit(real_spec)
    async with bench.worker():
        while not losses(desk.received[task_id]):
            await desk.facts_until(task_id, "metrics", SECONDS)
        await desk.steer(task_id, 2)
        received = await desk.facts_until(task_id, "stopped", SECONDS)
        await eventually(lambda: desk.records[task_id].claims == 1)
    (saved,) = payloads(received, "checkpoint_saved")
    assert payloads(received, "stopped")[0].checkpoint_step == saved.step > 0
