"""Attempts that fail: each says why, and no output of a child does harm."""

import signal
from pathlib import Path
from typing import Any

import pytest

from services.trainer_service.tests.bench import Bench, MakeSpec
from services.workerkit.tests.desk import Desk, payloads
from tunesmith.task.v1 import spec_pb2
from workerkit.supervision import Patience


@pytest.mark.parametrize(
    ("actions", "reason", "words", "retryable"),
    [
        ([["exit", 3]], "CHILD_CRASHED", ["exit code 3", "leaving early"], True),
        ([["kill", signal.SIGKILL]], "CHILD_KILLED", ["signal 9 (SIGKILL)", "memory"], True),
        ([["kill", signal.SIGSEGV]], "CHILD_CRASHED", ["11 (SIGSEGV)"], True),
        ([["error", "LOSS_DIVERGED", False]], "LOSS_DIVERGED", ["it cannot go on"], False),
        ([["error", "OUT_OF_MEMORY", True]], "OUT_OF_MEMORY", ["it cannot go on"], True),
        ([["hang"]], "CHILD_STALLED", ["no sign of life for 1 s", "step 1"], True),
    ],
)
async def test_every_way_to_fail_says_why(
    bench: Bench,
    desk: Desk,
    make_spec: MakeSpec,
    actions: list[list[Any]],
    reason: str,
    words: list[str],
    retryable: bool,
) -> None:
    bench.patience = Patience(stall_seconds=1.0 if reason == "CHILD_STALLED" else 30.0, grace_seconds=5.0)
    task_id = await desk.submit(make_spec({"steps": 9, "save_steps": 1, "at": {"2": actions}}))
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
        await desk.queue_is_empty(task_id)
    (failed,) = payloads(received, "failed")
    assert failed.error.reason == reason
    assert failed.retryable is retryable
    assert all(word in failed.error.message for word in words), failed.error.message
    assert failed.error.message in "\n".join(await desk.log(task_id))
    assert [checkpoint.step for checkpoint in payloads(received, "checkpoint_saved")] == [1]


async def test_garbage_floods_and_odd_bytes_do_no_harm(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    actions = [
        *([["raw", line]] for line in ("not json", '{"type": "metrics"}', "[1]", '{"type": 5}', '{"type": "unknown"}')),
        [["raw", '{"type": "checkpoint", "step": 1, "path": "/etc"}']],
        [["raw", '{"type": "metrics", "step": 1, "values": {"loss": "much"}}']],
        [["raw", '{"type": "log", "text": "from \\ud800 an event"}']],
        [["raw", "x" * 3_000_000]],
        [["print", "progress 1\rprogress 2"]],
        [["print", "y" * 40_000]],
        [["print", "many", 3_000]],
        [["burst", 3_000]],
    ]
    task_id = await desk.submit(make_spec({"steps": 2, "at": {"1": [item for group in actions for item in group]}}))
    async with bench.worker():
        received = await desk.facts_until(task_id, "completed")
    log = await desk.log(task_id)
    assert len([line for line in log if line.startswith("unreadable event")]) >= 5
    assert any("outside the job's directory" in line and "/etc" in line for line in log)
    assert "from ? an event" in log
    assert "progress 2" in log
    assert not any("progress 1" in line for line in log)
    assert "".join(line for line in log if line.startswith("y")) == "y" * 40_000
    assert log.count("many") == 3_000
    points = [p for batch in payloads(received, "metrics") for p in batch.points if p.name == "burst"]
    assert [point.value for point in points] == list(range(3_000))
    assert max(len(batch.points) for batch in payloads(received, "metrics")) <= 500


async def test_bad_input_fails_once_with_every_problem(
    bench: Bench, desk: Desk, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec({}, base_model="/etc", output_dir="/usr/share/model")
    (Path(spec.dataset.path) / "train.jsonl").write_text(
        '{"instruction": "a", "output": "b"}\n{"question": "a"}\nnot json\n'
    )
    spec.devices.cuda_visible_devices = "63"
    spec.training.optim = "magic"
    spec.training.eval_strategy = spec_pb2.INTERVAL_STRATEGY_STEPS
    task_id = await desk.submit(spec)
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
    (failed,) = payloads(received, "failed")
    assert not failed.retryable
    assert failed.error.reason == "SPEC_INVALID"
    problems = "\n".join(failed.error.problems)
    for word in (
        "finetune.base_model: ",
        "finetune.output_dir: ",
        "finetune.training.optim: ",
        "finetune.training.eval_strategy: ",
        "1 line: 2",
        "1 line: 3",
        "there is no device 63",
    ):
        assert word in problems
    assert not payloads(received, "child_started")


async def test_what_this_version_cannot_train_is_refused_plainly(bench: Bench, desk: Desk, make_spec: MakeSpec) -> None:
    task_id = await desk.submit(
        make_spec({}, image_classifier=spec_pb2.ImageClassifierParameters(), language_model=None)
    )
    async with bench.worker():
        received = await desk.facts_until(task_id, "failed")
    (failed,) = payloads(received, "failed")
    assert (failed.error.reason, failed.retryable) == ("MODALITY_NOT_AVAILABLE", False)
