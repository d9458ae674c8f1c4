"""How often facts are sent, and what of them is joined."""

import pytest

from servicekit.bus import Outgoing
from tests.support.waiting import eventually
from tunesmith.events.v1 import fact_pb2 as facts
from tunesmith.task.v1 import task_pb2 as tasks
from workerkit import child_events
from workerkit.child_events import Advanced, Measured
from workerkit.reporter import Reporter


class Collected:
    """Stands for the spool."""

    def __init__(self) -> None:
        self.facts: list[facts.Fact] = []
        self.batches: list[facts.LogBatch] = []
        self.alone: list[bool] = []

    def put(self, message: Outgoing, *, alone: bool = False) -> None:
        self.alone.append(alone)
        if message.subject.startswith("fact."):
            self.facts.append(facts.Fact.FromString(message.data))
            assert message.message_id == f"fact.t.2.{len(self.facts)}"
        else:
            self.batches.append(facts.LogBatch.FromString(message.data))


@pytest.fixture
def sent() -> Collected:
    return Collected()


@pytest.fixture
def reporter(sent: Collected) -> Reporter:
    return Reporter("t", 2, sent, tasks.Progress(step=7, total_steps=10, percent=70))  # type: ignore[arg-type]


def kinds(sent: Collected) -> list[str | None]:
    return [fact.WhichOneof("payload") for fact in sent.facts]


async def test_progress_is_told_twice_a_second_at_most(reporter: Reporter, sent: Collected) -> None:
    reporter.started(0, 1000)
    for step in range(1, 1000):
        reporter.advanced(Advanced(step, 1000, step / 1000))
    assert len(sent.facts) == 1
    await eventually(lambda: len(sent.facts) == 2)
    last = sent.facts[-1].progressed
    assert (last.step, last.total_steps, last.percent) == (999, 1000, 99.9)
    assert last.eta_seconds > 0


async def test_points_are_joined_but_not_too_many(reporter: Reporter, sent: Collected) -> None:
    for step in range(600):
        reporter.measured(Measured(step, {"loss": 1.0, "rate": 2.0}, 1.7e9))
    assert [len(fact.metrics.points) for fact in sent.facts] == [2, 500, 500]
    await eventually(lambda: len(sent.facts) == 4)
    assert len(sent.facts[-1].metrics.points) == 198
    reporter.measured(Measured(1, {f"m{n}": 0.0 for n in range(1200)}, 1.7e9))
    assert [len(fact.metrics.points) for fact in sent.facts[4:]] == [500, 500, 200]


async def test_the_end_comes_after_everything_and_alone(reporter: Reporter, sent: Collected) -> None:
    reporter.phase("training")
    reporter.advanced(Advanced(8, 10, 0.8))
    reporter.measured(Measured(8, {"loss": 1.0}, 1.7e9))
    reporter.log(["a line"])
    reporter.log(["another"])
    reporter.measured(Measured(9, {"loss": 1.0}, 1.7e9))
    reporter.end(facts.Fact(stopped=facts.AttemptStopped()))
    assert kinds(sent) == ["progressed", "metrics", "metrics", "progressed", "stopped"]
    assert [fact.sequence for fact in sent.facts] == [1, 2, 3, 4, 5]
    assert [batch.final for batch in sent.batches] == [False, True]
    assert [line.text for batch in sent.batches for line in batch.lines] == ["a line", "another"]
    assert sent.alone == [False] * 6 + [True]


async def test_what_was_reached_before_is_not_taken_back(reporter: Reporter, sent: Collected) -> None:
    reporter.phase("checking")
    assert (sent.facts[0].progressed.step, sent.facts[0].progressed.percent) == (7, 70)


async def test_an_attempt_that_repeats_everything_begins_at_nothing(reporter: Reporter, sent: Collected) -> None:
    reporter.anew()
    reporter.phase("checking")
    told = sent.facts[0].progressed
    assert (told.step, told.total_steps, told.percent, told.phase) == (0, 0, 0, "checking")


async def test_log_batches_are_bounded(reporter: Reporter, sent: Collected) -> None:
    reporter.log(["x"] * 1200)
    assert [len(batch.lines) for batch in sent.batches] == [500, 500]
    reporter.log(["y" * 100_000] * 4)
    assert all(batch.ByteSize() < 600_000 for batch in sent.batches)
    await eventually(lambda: sum(len(batch.lines) for batch in sent.batches) == 1200 + 4 * 7)
    assert {line.attempt for batch in sent.batches for line in batch.lines} == {2}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"[]",
        b"1",
        b"null",
        b'{"type": []}',
        b'{"type": "metrics", "step": 1, "values": [1]}',
        b'{"type": "metrics", "step": 1, "values": {"a": true}}',
        b'{"type": "metrics", "step": "x", "values": {}}',
        b'{"type": "progress", "step": 1e999, "total_steps": 1}',
        b'{"type": "checkpoint", "step": 1, "path": 5}',
        b'{"type": "error", "reason": "x"}',
        b"[" * 100_000,
    ],
)
def test_lines_that_are_no_events(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        child_events.parse(line)


def test_events_of_a_later_version_are_passed_over() -> None:
    assert child_events.parse(b'{"type": "hologram", "time": 1}') is None
