"""Checkpoints are copied in memory and written beside training: whole or not at all, one at a time (faults 25)."""

import errno
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modelkit.scratch import FAMILIES
from tests.support.waiting import wait_until
from trainer_service.recipes import saving, snapshots
from trainer_service.recipes.background import NICENESS, Background
from trainer_service.recipes.config import Training
from trainer_service.recipes.failures import OUTLOOK
from trainer_service.recipes.identity import origin_of
from trainer_service.recipes.language_model import train
from trainer_service.recipes.saving import CheckpointWriter, read_state
from trainer_service.recipes.snapshots import Snapshots, size_of
from workerkit.child.failures import describe
from workerkit.child.stopping import StopRequest

from .conftest import CPU, JobFactory, Recorder, run
from .test_entry import Zygote, zygote

__all__ = ["zygote"]

SAVING = {"save_strategy": "STEPS", "save_steps": 2}


def test_a_snapshot_keeps_what_was_and_what_was_shared() -> None:
    weight = torch.arange(6.0).view(2, 3)
    tree = {"a": weight, "tied": weight, "state": [{"step": 3, "half": torch.ones(2, dtype=torch.bfloat16)}], "b": (1,)}
    taken = Snapshots().take(tree)
    weight += 1
    assert taken["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert taken["a"] is taken["tied"]
    assert (taken["state"][0]["step"], taken["state"][0]["half"].dtype, taken["b"]) == (3, torch.bfloat16, (1,))
    assert size_of(tree) == 2 * 24 + 4


def test_snapshots_use_their_memory_again() -> None:
    keeper, weight = Snapshots(), torch.zeros(4)
    first = keeper.take([weight])[0]
    weight += 1
    second = keeper.take([weight])[0]
    assert first.data_ptr() == second.data_ptr()
    assert second.tolist() == [1, 1, 1, 1]


def test_work_in_the_background_is_one_at_a_time_and_its_failure_is_told_once() -> None:
    background, gate, done = Background("work"), threading.Event(), []

    def first() -> None:
        gate.wait(30)
        done.append(1)

    def second() -> None:
        assert done == [1]
        raise OSError(errno.EIO, "broken")

    background.start(first)
    background.check()
    assert done == []
    gate.set()
    background.start(second)
    with pytest.raises(OSError, match="broken"):
        background.wait()
    background.wait()


@pytest.mark.parametrize("more", [0, 10, 19])
def test_work_in_the_background_never_gains_priority(more: int) -> None:
    """To lower a niceness needs a privilege: a platform that was started with `nice` would save no checkpoint."""
    found: list[int] = []

    def start() -> None:
        found.append(os.nice(more))
        background = Background("work")
        background.start(lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        background.wait()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(30)
    assert found[1] == min(found[0] + NICENESS, 19)


def test_training_goes_on_while_a_checkpoint_is_written(jobs: JobFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writing of the first waits until two more steps were taken; what it holds is the step it was due at."""
    stepped = threading.Event()
    write = CheckpointWriter.write

    def slow(self: CheckpointWriter, step: int, *rest: Any) -> Path:
        assert step != 2 or stepped.wait(30)
        return write(self, step, *rest)

    monkeypatch.setattr(CheckpointWriter, "write", slow)

    def watch(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and event["step"] == 3 and "loss" in event["values"]:
            stepped.set()

    job = jobs(training={**SAVING, "max_steps": 4})
    events = run(job, watch)
    order = [(event["type"], event["step"]) for event in events.events if event["type"] in ("checkpoint", "done")]
    assert order == [("checkpoint", 2), ("checkpoint", 4), ("done", 4)]
    kinds = [(event["type"], event.get("step")) for event in events.events]
    assert kinds.index(("progress", 4)) > kinds.index(("metrics", 3))
    monkeypatch.undo()
    alone = jobs(training={**SAVING, "max_steps": 4})
    run(alone)
    ours, theirs = (load_file(one.checkpoints / "checkpoint-2" / "adapter_model.safetensors") for one in (job, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(events.curve("checkpoint_stall_seconds")) == 2


def test_a_checkpoint_needs_no_data_file_any_more(jobs: JobFactory, tmp_path: Path) -> None:
    """Converted and uploaded data lies in a cache, from which it may be removed while a long task trains."""
    job = jobs(training={**SAVING, "max_steps": 2})
    job = replace(job, train_file=Path(shutil.copy(job.train_file, tmp_path / "mine.jsonl")))

    def watch(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["step"] == 1:
            wait_until(lambda: not any(thread.name == "checkpoint" for thread in threading.enumerate()))
            job.train_file.unlink()

    before = origin_of(job)
    run(job, watch)
    assert read_state(job.checkpoints / "checkpoint-2")["origin"]["dataset_sha256"] == before["dataset_sha256"]


def test_what_is_being_written_when_training_fails_is_brought_to_its_end(
    jobs: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = threading.Event()
    write = CheckpointWriter.write

    def slow(self: CheckpointWriter, step: int, *rest: Any) -> Path:
        assert failing.wait(30)
        return write(self, step, *rest)

    def watch(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and event["step"] == 3 and "loss" in event["values"]:
            failing.set()
            raise MemoryError

    monkeypatch.setattr(CheckpointWriter, "write", slow)
    job = jobs(training={**SAVING, "log_level": "debug"})
    events = Recorder(watch)
    events.log_level = "debug"
    with pytest.raises(MemoryError):
        train(job, events, StopRequest(), CPU)
    assert [event["step"] for event in events.of("checkpoint")] == [2]
    assert "checkpoint-2 was written in" in events.text()
    assert (job.checkpoints / "checkpoint-2" / "optimizer.pt").is_file()


def test_a_write_that_fails_ends_the_job_and_is_never_told_as_saved(
    jobs: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data")

    monkeypatch.setattr(saving, "sync", full)
    job, events = jobs(training=SAVING), Recorder()
    with pytest.raises(OSError, match="No space left") as caught:
        run(job, events.events.append)
    assert describe(caught.value, OUTLOOK).reason == "DISK_FULL"
    assert events.of("checkpoint") == events.of("done") == []
    assert list(job.checkpoints.glob("*checkpoint-*")) == []


def test_without_room_for_a_copy_training_waits_for_the_files(
    jobs: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "available_bytes", lambda: 0)
    events = run(jobs(training=SAVING))
    kinds = [(event["type"], event.get("step")) for event in events.events]
    assert kinds.index(("checkpoint", 2)) < kinds.index(("progress", 3) if ("progress", 3) in kinds else ("metrics", 3))
    assert [event["step"] for event in events.of("checkpoint")] == [2, 4, 6]


def test_a_full_disk_is_known_by_whatever_a_library_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def fail(_: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")

    with pytest.raises(OSError, match="no space left on the disk") as caught:
        saving.write_directory(tmp_path / "one", refuse)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="unexpected pos"):
        saving.write_directory(tmp_path / "two", fail)
    monkeypatch.setattr(saving, "NO_SPACE", 1 << 62)
    with pytest.raises(OSError, match="no space left on the disk"):
        saving.write_directory(tmp_path / "two", fail)
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_are_not_whole_on_disk_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "optimizer.pt"
    saving.save_tensors({"a": torch.ones(3)}, path)
    assert saving.load_tensors(path)["a"].tolist() == [1, 1, 1]
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(OSError, match="not written whole"):
        saving.save_tensors({"a": torch.ones(3)}, path)


def test_settings_are_those_of_the_job(jobs: JobFactory) -> None:
    job = jobs(training=SAVING)
    run(job)
    stored = torch.load(job.checkpoints / "checkpoint-6" / "training_args.bin", weights_only=True)
    assert stored.keys() == set(Training.__slots__)
    assert stored["seed"] == 42


@pytest.mark.parametrize("processes", [1, 2])
def test_weights_that_are_tied_are_stored_once(
    zygote: Zygote, jobs: JobFactory, tiny_models: dict[str, Path], processes: int
) -> None:
    family = next(name for name, kind in FAMILIES.items() if kind.tie_word_embeddings)
    sharded = {"parallelism": "PARALLELISM_FULLY_SHARDED"} if processes > 1 else {}
    directory = jobs.directory(
        model_dir=str(tiny_models[family]),
        training={**SAVING, **sharded, "max_steps": 2},
        language_model={"method": "METHOD_FULL"},
        processes=processes,
    )
    process = zygote.start(directory)
    assert process.wait() == 0, process.log
    base = load_file(tiny_models[family] / "model.safetensors").keys()
    assert "lm_head.weight" not in base
    assert load_file(directory / "checkpoints" / "checkpoint-2" / "model.safetensors").keys() == base
    assert load_file(directory / "output" / "model.safetensors").keys() == base


def test_settings_for_generation_that_transformers_would_not_write_are_kept(jobs: JobFactory, tmp_path: Path) -> None:
    """As LLaMA 2 has them: a temperature without sampling."""
    base = tmp_path / "base"
    shutil.copytree(jobs.model_dir, base)
    settings = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [1, 6]}
    (base / "generation_config.json").write_text(json.dumps(settings))
    saving_once = {"max_steps": 2, "save_strategy": "INTERVAL_STRATEGY_STEPS", "save_steps": 1}
    job = jobs(model_dir=str(base), training=saving_once, language_model={"method": "METHOD_FULL"})
    last = Path(run(job).of("checkpoint")[-1]["path"])
    for folder in (last, job.output_dir):
        assert settings.items() <= json.loads((folder / "generation_config.json").read_text()).items()
    assert AutoModelForCausalLM.from_pretrained(job.output_dir).generation_config.temperature == 0.9
