"""Process groups made of small real programs: order, health, death, restart, stop."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import eventually, wait_until
from tunesmith_local.errors import CannotStart
from tunesmith_local.member import Member, Patience
from tunesmith_local.process import LOG_BYTES, Program, describe_end
from tunesmith_local.state import end_leftovers, recorder
from tunesmith_local.supervisor import Supervisor, levels

PATIENCE = Patience(poll=0.01, start=20.0, first=0.01, longest=0.05, calm=30.0)

CHILD = """
import pathlib, signal, sys
name, folder, *flags = sys.argv[1:]
folder = pathlib.Path(folder)

def note(word):
    with (folder / "order").open("a") as file:
        file.write(f"{word} {name}\\n")

def end(*_):
    note("stop")
    (folder / f"{name}.ready").unlink(missing_ok=True)
    if "stubborn" not in flags:
        sys.exit(0)

signal.signal(signal.SIGTERM, end)
note("start")
print(f"{name} says hello", flush=True)
if "dies" in flags:
    sys.exit(3)
if "dies_once" in flags and not (folder / f"{name}.died").exists():
    (folder / f"{name}.died").touch()
    sys.exit(4)
if "never_ready" not in flags:
    (folder / f"{name}.ready").touch()
while True:
    signal.pause()
"""


class Group:
    """A supervisor over children that note what they do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.script = folder / "child.py"
        self.script.write_text(CHILD)
        self.stop = asyncio.Event()
        self.supervisor: Supervisor

    def program(self, name: str, *flags: str, needs: Sequence[str] = (), stop_seconds: float = 10.0) -> Program:
        ready = self.folder / f"{name}.ready"

        async def serves() -> bool:
            return ready.exists()

        command = (sys.executable, "-S", str(self.script), name, str(self.folder), *flags)
        return Program(name, command, serves, depends_on=tuple(needs), stop_seconds=stop_seconds)

    def build(self, *programs: Program, patience: Patience = PATIENCE) -> Supervisor:
        record = recorder(self.folder / "processes.json", "http://here")
        self.supervisor = Supervisor(
            programs, lambda name: self.folder / f"{name}.log", say=self.said.append, changed=record, patience=patience
        )
        return self.supervisor

    @asynccontextmanager
    async def running(self, *programs: Program, patience: Patience = PATIENCE) -> AsyncIterator[Supervisor]:
        supervisor = self.build(*programs, patience=patience)
        serving = asyncio.Event()
        run = asyncio.create_task(supervisor.run(self.stop, serving.set))
        waiting = asyncio.create_task(serving.wait())
        await asyncio.wait({run, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if run.done():
                run.result()
            yield supervisor
        finally:
            self.stop.set()
            await run

    def order(self) -> list[str]:
        return (self.folder / "order").read_text().splitlines()

    def member(self, name: str) -> Member:
        return next(member for member in self.supervisor.members if member.program.name == name)


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path)


async def test_starts_in_order_and_stops_in_reverse(group: Group) -> None:
    bus, store = group.program("bus"), group.program("store", needs=["bus"])
    async with group.running(group.program("edge", needs=["store"]), store, bus):
        assert group.order() == ["start bus", "start store", "start edge"]
        assert [member.state for member in group.supervisor.members] == ["running"] * 3
    assert group.order()[3:] == ["stop edge", "stop store", "stop bus"]
    assert [member.pid for member in group.supervisor.members] == [0, 0, 0]


async def test_nothing_starts_before_what_it_needs_serves(group: Group) -> None:
    supervisor = group.build(group.program("bus", "never_ready"), group.program("edge", needs=["bus"]))
    run = asyncio.create_task(supervisor.run(group.stop, lambda: None))
    await eventually(lambda: "hello" in group.member("bus").log.read_text() if group.member("bus").log.exists() else "")
    assert group.order() == ["start bus"]
    assert group.member("edge").state == "waiting"
    (group.folder / "bus.ready").touch()
    await eventually(lambda: "start edge" in group.order())
    group.stop.set()
    await run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_death_is_reported_by_name_and_mended(group: Group, number: signal.Signals) -> None:
    async with group.running(group.program("bus"), group.program("edge", needs=["bus"])):
        bus = group.member("bus")
        first, edge = bus.pid, group.member("edge").pid
        (group.folder / "bus.ready").unlink()
        os.kill(first, number)
        await eventually(lambda: bus.restarts == 1 and bus.state == "running")
        assert bus.pid not in (0, first)
        assert group.member("edge").pid == edge
    how = "was killed by SIGKILL" if number is signal.SIGKILL else "exited with 0"
    assert group.said[0] == f"bus {how}; starting it again in 0.01 s"
    assert group.said[1].startswith("bus serves again after ")


async def test_a_fault_is_told_and_mended_by_a_new_start(group: Group) -> None:
    faults = iter(["", "", "cannot write (no space left)"])

    async def fault() -> str:
        return next(faults, "")

    patience = replace(PATIENCE, check=0.01)
    async with group.running(replace(group.program("bus"), fault=fault), patience=patience):
        bus = group.member("bus")
        await eventually(lambda: bus.restarts == 1 and bus.state == "running")
        assert group.order() == ["start bus", "stop bus", "start bus"]
    assert group.said[0] == "bus cannot write (no space left); starting it again in 0.01 s"


async def test_a_death_is_noticed_between_two_questions_for_faults(group: Group) -> None:
    async def fault() -> str:
        return ""

    async with group.running(replace(group.program("bus"), fault=fault)):
        bus = group.member("bus")
        os.kill(bus.pid, signal.SIGKILL)
        await eventually(lambda: bus.restarts == 1 and bus.state == "running")


async def test_crash_loop_shows_the_end_of_the_log_and_goes_on(group: Group) -> None:
    patience = replace(PATIENCE, loop_deaths=3)
    async with group.running(group.program("bus"), patience=patience):
        bus = group.member("bus")
        for restarts in range(3):
            os.kill(bus.pid, signal.SIGKILL)
            await eventually(lambda expected=restarts + 1: bus.restarts == expected and bus.state == "running")
    (loop,) = [line for line in group.said if "tried further" in line]
    assert loop.startswith("bus died 3 times within ")
    assert "  | bus says hello" in loop.splitlines()


async def test_one_death_before_service_is_forgiven(group: Group) -> None:
    async with group.running(group.program("bus", "dies_once")):
        assert group.member("bus").restarts == 1
    assert group.said == ["bus exited with 4; starting it again in 0.01 s"]


async def test_what_never_serves_ends_the_start(group: Group) -> None:
    with pytest.raises(CannotStart) as caught:
        async with group.running(group.program("bus"), group.program("edge", "dies", needs=["bus"])):
            pytest.fail("it must not come to serve")
    assert str(caught.value).startswith("edge exited with 3, 3 times in a row. The end of ")
    assert "  | edge says hello" in str(caught.value)
    assert group.order()[-1] == "stop bus"


async def test_what_is_too_slow_ends_the_start(group: Group) -> None:
    with pytest.raises(CannotStart, match=r"bus did not serve within 0\.2 s"):
        async with group.running(group.program("bus", "never_ready"), patience=replace(PATIENCE, start=0.2)):
            pytest.fail("it must not come to serve")
    assert group.member("bus").pid == 0


async def test_program_that_is_missing(group: Group) -> None:
    program = replace(group.program("bus"), command=(str(group.folder / "nothing"),))
    with pytest.raises(CannotStart, match="No such file"):
        async with group.running(program):
            pytest.fail("it must not come to serve")


async def test_disk_that_takes_no_more_files_is_waited_for(group: Group) -> None:
    async with group.running(group.program("bus")):
        bus, moved = group.member("bus"), group.folder.with_name("elsewhere")
        group.folder.rename(moved)
        os.kill(bus.pid, signal.SIGKILL)
        await eventually(lambda: any("could not be started (" in line for line in group.said))
        moved.rename(group.folder)
        await eventually(lambda: bus.state == "running")


async def test_stubborn_program_is_killed_after_its_deadline(group: Group) -> None:
    async with group.running(group.program("bus", "stubborn", stop_seconds=0.2)):
        pid = group.member("bus").pid
    assert group.said == ["bus did not end within 0.2 s and was killed"]
    assert not psutil.pid_exists(pid)


async def test_impatient_kill_ends_an_orderly_stop(group: Group) -> None:
    async with group.running(group.program("bus", "stubborn", stop_seconds=50)):
        group.stop.set()
        await eventually(lambda: "stop bus" in group.order())
        group.supervisor.kill()
    assert group.said == []


async def test_stop_while_starting(group: Group) -> None:
    supervisor = group.build(group.program("bus"), group.program("edge", "never_ready", needs=["bus"]))
    run = asyncio.create_task(supervisor.run(group.stop, lambda: pytest.fail("not everything serves")))
    await eventually(lambda: group.member("edge").state == "starting" and "start edge" in group.order())
    group.stop.set()
    await run
    assert [member.state for member in supervisor.members] == ["stopped", "stopped"]
    assert group.order()[-1] == "stop bus"


async def test_large_log_is_put_aside(group: Group) -> None:
    log = group.folder / "bus.log"
    log.write_bytes(b"old\n" * (LOG_BYTES // 4 + 1))
    async with group.running(group.program("bus")):
        await eventually(lambda: log.exists() and log.read_text() == "bus says hello\n")
    assert (group.folder / "bus.log.1").stat().st_size > LOG_BYTES


SUPERVISOR = """
import asyncio, pathlib, sys
from tunesmith_local.member import Patience
from tunesmith_local.process import Program
from tunesmith_local.state import recorder
from tunesmith_local.supervisor import Supervisor
folder = pathlib.Path(sys.argv[1])
async def serves():
    return (folder / "bus.ready").exists()
program = Program("bus", (sys.executable, "-S", str(folder / "child.py"), "bus", str(folder), "stubborn"), serves)
record = recorder(folder / "processes.json", "")
supervisor = Supervisor([program], lambda name: folder / f"{name}.log", say=print, changed=record, patience=Patience())
asyncio.run(supervisor.run(asyncio.Event(), lambda: print("serving", flush=True)))
"""


def test_children_die_with_their_supervisor(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"serving\n"
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert end_leftovers(tmp_path / "processes.json") == []


def test_leftovers_of_a_killed_supervisor_are_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True) as process:
        created = psutil.Process(process.pid).create_time()
        other = {"name": "reused", "pid": os.getpid(), "created": 1.0}
        listed = [{"name": "bus", "pid": process.pid, "created": created}, other, {"name": "gone", "pid": 0}]
        path = tmp_path / "processes.json"
        path.write_text(str({"processes": listed}).replace("'", '"'))
        assert end_leftovers(path) == ["bus"]
        assert process.poll() is not None
    assert end_leftovers(tmp_path / "nothing.json") == []


def test_order_of_needs(group: Group) -> None:
    make: Callable[..., Program] = group.program
    found = levels([make("c", needs=["a", "b"]), make("b", needs=["a"]), make("a"), make("d")])
    assert [[program.name for program in level] for level in found] == [["a", "d"], ["b"], ["c"]]
    with pytest.raises(ValueError, match="a, b need each other"):
        levels([make("a", needs=["b"]), make("b", needs=["a"])])
    with pytest.raises(ValueError, match="a needs x"):
        levels([make("a", needs=["x"])])


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exited with 0"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")]
)
def test_ends_in_words(code: int, text: str) -> None:
    assert describe_end(code) == text
