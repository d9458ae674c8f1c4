"""The fork server with real processes: what a child is given, how ends are told, and that nothing outlives anything."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually
from workerkit import fork_launcher
from workerkit.fork_launcher import ForkLauncher, running_launcher
from workerkit.fork_server_process import ForkedChild
from workerkit.launcher import LaunchError

JOBS = Path(__file__).parent / "jobs"
SECRETS = {"TUNESMITH_NATS_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"}


@pytest.fixture
async def launcher(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForkLauncher]:
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    for name in SECRETS:
        monkeypatch.setenv(name, "a secret")
    async with running_launcher(preload="light_preload", entry="plain_jobs:run") as launcher:
        yield launcher


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Path]:
    def make(do: str, **more: object) -> Path:
        folder = tmp_path / do
        folder.mkdir(exist_ok=True)
        (folder / "job.json").write_text(json.dumps({"do": do, **more}))
        return folder

    return make


async def lines(stream: AsyncIterator[list[bytes]]) -> list[bytes]:
    return [line async for batch in stream for line in batch]


async def first_event(child: ForkedChild) -> dict[str, Any]:
    async for batch in child.events:
        return dict(json.loads(batch[0]))
    raise AssertionError("the child ended without an event")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"Z", b"X")


async def gone(*pids: int) -> None:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if alive(pid)]}"
        await asyncio.sleep(0.01)


async def test_child_has_pipes_environment_limits_and_a_session_of_its_own(
    launcher: ForkLauncher, job: Callable[..., Path]
) -> None:
    folder = job("report")
    child = await launcher.start(folder, {"COLOR": "red"})
    events, log, ended = await asyncio.gather(lines(child.events), lines(child.log), child.wait())
    (event,) = map(json.loads, events)
    assert ended.status == 0
    assert not ended.launcher_lost
    assert log == [b"to stdout", b"to stderr"]
    assert event["pid"] == event["group"] == event["session"] == child.pid
    assert (event["cwd"], event["color"], event["stdin"]) == (str(folder), "red", "/dev/null")
    assert not SECRETS & set(event["variables"])
    assert event["core"] == 0
    assert event["oom"] >= 800
    assert len(event["descriptors"]) == 5  # 0, 1, 2, the event pipe, and the listing itself


@pytest.mark.parametrize(("do", "more", "status"), [("leave", {"code": 3}, 3), ("fail", {}, 1)])
async def test_exit_codes_arrive(
    launcher: ForkLauncher, job: Callable[..., Path], do: str, more: dict[str, object], status: int
) -> None:
    child = await launcher.start(job(do, **more), {})
    log, ended = await asyncio.gather(lines(child.log), child.wait())
    assert ended.status == status
    assert (b"RuntimeError: something broke" in log) is (do == "fail")


async def test_peak_memory_is_told(launcher: ForkLauncher, job: Callable[..., Path]) -> None:
    child = await launcher.start(job("big"), {})
    ended = await child.wait()
    assert 200 << 20 < ended.peak_memory < 500 << 20


async def test_no_line_of_a_burst_is_lost(launcher: ForkLauncher, job: Callable[..., Path]) -> None:
    child = await launcher.start(job("burst"), {})
    events, log = await asyncio.gather(lines(child.events), lines(child.log))
    assert [json.loads(line)["n"] for line in events] == list(range(20_000))
    assert log == [b"x" * 100] * 20_000


async def test_children_run_side_by_side(launcher: ForkLauncher, job: Callable[..., Path]) -> None:
    first, second = await launcher.start(job("orderly"), {}), await launcher.start(job("hang"), {})
    await asyncio.gather(first_event(first), first_event(second))
    first.terminate()
    assert (await first.wait()).status == 7
    assert alive(second.pid)
    second.kill()
    assert (await second.wait()).status == -signal.SIGKILL


async def test_a_child_that_is_to_end_the_moment_it_starts_ends(
    launcher: ForkLauncher, job: Callable[..., Path]
) -> None:
    """The fork server itself ignores the signal; of many children one would take that over for a moment."""
    for _ in range(40):
        child = await launcher.start(job("hang"), {})
        child.terminate()
        async with asyncio.timeout(10):
            assert (await child.wait()).status == -signal.SIGTERM


async def test_what_a_child_started_dies_with_it(launcher: ForkLauncher, job: Callable[..., Path]) -> None:
    for end in (ForkedChild.kill, lambda child: os.kill(child.pid, signal.SIGKILL)):
        child = await launcher.start(job("family"), {})
        event = await first_event(child)
        end(child)
        assert (await child.wait()).status == -signal.SIGKILL
        await gone(event["pid"], event["apart"], event["near"])


async def test_death_of_the_fork_server_kills_children_and_another_takes_over(
    launcher: ForkLauncher, job: Callable[..., Path]
) -> None:
    child = await launcher.start(job("hang"), {})
    event = await first_event(child)
    before = launcher.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    ended = await child.wait()
    assert ended.launcher_lost
    await gone(event["pid"], before)
    again = await launcher.start(job("leave", code=0), {})
    assert (await again.wait()).status == 0
    assert launcher.pid != before


async def test_a_fork_server_that_hangs_is_replaced(
    launcher: ForkLauncher, job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workerkit.fork_server_process.START_SECONDS", 0.2)
    await launcher.wait_warm()
    assert launcher.pid is not None
    os.kill(launcher.pid, signal.SIGSTOP)
    with pytest.raises(LaunchError, match="did not answer"):
        await launcher.start(job("leave", code=0), {})
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    child = await launcher.start(job("leave", code=5), {})
    assert (await child.wait()).status == 5


@pytest.fixture
async def sparing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForkLauncher]:
    """A launcher that has a fork server only while it is used."""
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    async with running_launcher(preload="light_preload", entry="plain_jobs:run", warm_seconds=0.2) as launcher:
        yield launcher


async def test_a_fork_server_on_demand_comes_with_the_first_child_and_goes_when_it_is_idle(
    sparing: ForkLauncher, job: Callable[..., Path]
) -> None:
    await sparing.wait_able()
    assert sparing.pid is None
    servers = []
    for code in (3, 4):
        child = await sparing.start(job("leave", code=code), {})
        servers.append(sparing.pid)
        assert (await child.wait()).status == code
        await eventually(lambda: sparing.pid is None)
        assert not sparing.warm
    assert servers[0] != servers[1]
    await gone(*filter(None, servers))


async def test_a_fork_server_on_demand_is_warm_before_a_child_that_was_announced(sparing: ForkLauncher) -> None:
    sparing.warm_up()
    await sparing.wait_warm()
    await eventually(lambda: sparing.pid is None)


async def test_a_launcher_does_not_wait_for_a_fork_server_that_is_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(JOBS), str(tmp_path))))
    started = tmp_path / "started"
    (tmp_path / "slow_preload.py").write_text(f"import time\nopen({str(started)!r}, 'w').close()\ntime.sleep(600)\n")
    async with running_launcher(preload="slow_preload", entry="plain_jobs:run") as launcher:
        await eventually(started.exists)
        server = launcher.pid
        assert server is not None
    await gone(server)


async def test_a_fork_server_on_demand_stays_while_a_child_runs(
    sparing: ForkLauncher, job: Callable[..., Path]
) -> None:
    child = await sparing.start(job("hang"), {})
    await first_event(child)
    server = sparing.pid
    idle = asyncio.ensure_future(eventually(lambda: sparing.pid != server))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(idle), 0.6)
    child.kill()
    await idle


async def test_a_fork_server_on_demand_that_does_not_come_up_fails_the_start(
    job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(JOBS), str(tmp_path))))
    async with running_launcher(preload="comes_later", entry="plain_jobs:run", warm_seconds=60) as launcher:
        with pytest.raises(LaunchError, match="died before it was ready"):
            await launcher.start(job("leave", code=0), {})
        await launcher.wait_unable()
        (tmp_path / "comes_later.py").touch()
        await launcher.wait_able()
        child = await launcher.start(job("leave", code=6), {})
        assert (await child.wait()).status == 6


async def test_a_fork_server_that_hangs_while_it_imports_fails_the_start(
    job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_launcher, "WARM_UP_SECONDS", 0.2)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(JOBS), str(tmp_path))))
    (tmp_path / "hangs.py").write_text("import signal\nsignal.pause()\n")
    async with running_launcher(preload="hangs", entry="plain_jobs:run", warm_seconds=60) as launcher:
        with pytest.raises(LaunchError, match=r"not ready within 0.2 s"):
            await launcher.start(job("leave", code=0), {})


async def test_a_machine_without_room_for_a_fork_server_fails_the_start_and_is_tried_again(
    job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine out of processes or memory for a moment must not leave callers waiting for ever."""
    monkeypatch.setenv("PYTHONPATH", str(JOBS))
    start = subprocess.Popen

    def refuse(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    async with running_launcher(preload="light_preload", entry="plain_jobs:run", warm_seconds=60) as launcher:
        monkeypatch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(LaunchError, match="Resource temporarily unavailable"):
            await launcher.start(job("leave", code=0), {})
        monkeypatch.setattr(subprocess, "Popen", start)
        await launcher.wait_able()
        child = await launcher.start(job("leave", code=6), {})
        assert (await child.wait()).status == 6


WORKER = """
import asyncio, json, pathlib, sys
from workerkit.fork_launcher import running_launcher

async def main():
    async with running_launcher(preload="light_preload", entry="plain_jobs:run") as launcher:
        child = await launcher.start(pathlib.Path(sys.argv[1]), {})
        async for lines in child.events:
            print(json.dumps({"server": launcher.pid, **json.loads(lines[0])}), flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("victims", [["worker"], ["worker", "server"]])
async def test_death_of_the_worker_ends_everything(job: Callable[..., Path], victims: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(JOBS)}
    worker = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
        [sys.executable, "-c", WORKER, str(job("family" if victims == ["worker"] else "hang"))],
        stdout=subprocess.PIPE,
        env=environment,
    )
    with worker:
        assert worker.stdout is not None
        event = json.loads(await asyncio.to_thread(worker.stdout.readline))
        for victim in victims:
            os.kill(worker.pid if victim == "worker" else event["server"], signal.SIGKILL)
        await gone(event["server"], event["pid"], *(event[key] for key in ("apart", "near") if key in event))
