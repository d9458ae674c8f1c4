"""Processes of models that do not come up, or hang: whoever waits is told, and nothing of them is left."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from eval_service.generation import process
from eval_service.generation.process import ModelProcess
from servicekit.errors import Internal, TunesmithError, Unavailable
from tests.support.waiting import eventually
from workerkit.fork_launcher import ForkLauncher, running_launcher
from workerkit.fork_server import children_of
from workerkit.launcher import ChildExit

LONG = 600.0


@pytest.fixture
async def launcher(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForkLauncher]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    async with running_launcher(preload="json", entry="silent_process:wait") as launcher:
        await launcher.wait_warm()
        yield launcher


async def started(
    launcher: ForkLauncher, folder: Path, monkeypatch: pytest.MonkeyPatch, does: str, stall_seconds: float = LONG
) -> ModelProcess:
    monkeypatch.setattr(process, "ENTRY", f"silent_process:{does}")
    return await ModelProcess.start(launcher, folder, {}, stall_seconds)


async def no_children(launcher: ForkLauncher) -> None:
    server = launcher.pid
    assert server is not None
    await eventually(lambda: not children_of(server))


async def test_one_that_never_connects_is_given_up(
    launcher: ForkLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "CONNECT_SECONDS", 0.2)
    with pytest.raises(Unavailable, match="did not answer"):
        await started(launcher, tmp_path / "model", monkeypatch, "wait")
    await no_children(launcher)
    assert not (tmp_path / "model").exists()


async def test_one_that_cannot_be_launched_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_launcher(preload="json", entry="there_is_no:such", warm_seconds=LONG) as launcher:
        with pytest.raises(Unavailable, match="no process can be started"):
            await started(launcher, tmp_path / "model", monkeypatch, "wait")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("does", ["connect_and_wait", "hang_when_asked"])
async def test_one_that_hangs_is_ended(
    launcher: ForkLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    """While it loads, and while it answers or brings an adapter into memory."""
    held = await started(launcher, tmp_path / "model", monkeypatch, does, 0.3)

    async def answer() -> None:
        await asyncio.shield(held.ready)
        async for _ in held.generate("", {}):
            pytest.fail("an answer of nobody")

    outcomes = await asyncio.gather(answer(), held.add("a", tmp_path), return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, TunesmithError)
        assert outcome.reason == "MODEL_PROCESS_STALLED"
        assert "did nothing for 0.3 s. Ask again" in outcome.message
    await held.wait()
    await no_children(launcher)
    assert not (tmp_path / "model").exists()


async def test_one_that_has_nothing_to_do_is_left_alone(
    launcher: ForkLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await started(launcher, tmp_path / "model", monkeypatch, "hang_when_asked", 0.1)
    await held.ready
    await asyncio.wait((held.gone,), timeout=0.5)
    assert not held.gone.done()
    held.kill()
    await held.wait()


async def test_one_whose_answer_nobody_takes_is_left_alone(
    launcher: ForkLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has done its work; a caller that reads slowly does not make it one that hangs."""
    held = await started(launcher, tmp_path / "model", monkeypatch, "answer_at_once", 0.1)
    await held.ready
    answer = held.generate("", {})
    assert (await anext(answer))["text"] == "Yes."
    await asyncio.wait((held.gone,), timeout=0.5)
    assert not held.gone.done()
    assert [message["event"] async for message in answer] == ["done"]
    held.kill()
    await held.wait()


def test_what_is_told_to_one_that_has_closed_its_socket_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the event loop of the services too: its end is told to those who ask between its last word and its death."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    async def main() -> None:
        async with running_launcher(preload="json", entry="silent_process:wait") as launcher:
            await launcher.wait_warm()
            held = await started(launcher, tmp_path / "model", monkeypatch, "hang_when_asked")
            await held.ready
            dead, wait = asyncio.Event(), held._child.wait

            async def wait_a_moment() -> ChildExit:
                await dead.wait()
                return await wait()

            monkeypatch.setattr(held._child, "wait", wait_a_moment)
            held._writer.close()
            await held._writer.wait_closed()
            held.remove("a")
            asking = asyncio.ensure_future(anext(held.generate("", {})))
            await asyncio.wait((asking,), timeout=0.1)
            dead.set()
            with pytest.raises(Internal, match="by signal SIGKILL"):
                await asking
            await held.wait()

    uvloop.run(main())


async def test_one_that_cannot_be_understood_is_ended(
    launcher: ForkLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await started(launcher, tmp_path / "model", monkeypatch, "talk_nonsense")
    with pytest.raises(Internal, match="by signal SIGKILL"):
        await asyncio.shield(held.ready)
    await held.wait()
    await no_children(launcher)
