"""Why a training process ended without a word, with advice where there is some (faults 29, 31)."""

import signal
from pathlib import Path

import pytest

from workerkit import crashes
from workerkit.crashes import Terms, explain_crash, out_of_memory_kills
from workerkit.launcher import ChildExit

OUT_OF_MEMORY = ("use smaller batches", "use a smaller model")
TERMS = Terms("training process", OUT_OF_MEMORY)
KILLED = ChildExit(-signal.SIGKILL, peak_memory=3 << 30)


def test_a_child_that_the_kernel_killed_for_memory_ran_out_of_memory() -> None:
    failed = explain_crash(KILLED, ["last line"], TERMS, out_of_memory=True)
    assert failed.reason == "OUT_OF_MEMORY"
    assert "the kernel killed the training process at a peak of 3.0 GiB" in failed.message
    positions = [failed.message.index(remedy) for remedy in OUT_OF_MEMORY]
    assert positions == sorted(positions)
    assert failed.message.endswith("last line")


def test_a_child_that_was_killed_probably_ran_out_of_memory() -> None:
    failed = explain_crash(KILLED, [], TERMS, out_of_memory=False)
    assert failed.reason == "CHILD_KILLED"
    assert "often the machine ran out of memory" in failed.message
    assert all(remedy in failed.message for remedy in OUT_OF_MEMORY)


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (ChildExit(-signal.SIGSEGV), "signal 11 (SIGSEGV)"),
        (ChildExit(3), "exit code 3 and no result"),
        (ChildExit(-signal.SIGKILL, launcher_lost=True), "taken down together with the fork server"),
    ],
)
def test_other_ends_are_named_without_advice(ended: ChildExit, words: str) -> None:
    failed = explain_crash(ended, [], TERMS, out_of_memory=False)
    assert words in failed.message
    assert OUT_OF_MEMORY[0] not in failed.message


def test_kills_are_counted_where_this_process_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    monkeypatch.setattr(crashes, "OOM_COUNTERS", (group, machine))
    assert out_of_memory_kills() == 0
    machine.write_text("pgfault 7\noom_kill 4\n")
    assert out_of_memory_kills() == 4
    group.write_text("low 0\noom 9\noom_kill 2\noom_group_kill 0\n")
    assert out_of_memory_kills() == 2
