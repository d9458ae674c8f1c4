"""`tunesmith up`: the whole platform on one machine, until it is told to stop."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from servicekit.settings import is_loopback
from tunesmith_local import identity, ports
from tunesmith_local.errors import CannotStart
from tunesmith_local.files import write_whole
from tunesmith_local.layout import DataDirectory
from tunesmith_local.lock import held
from tunesmith_local.member import Patience
from tunesmith_local.state import end_leftovers, recorder
from tunesmith_local.supervisor import Supervisor
from tunesmith_local.table import SERVICES, Request, programs

STOPPED_BY_USER = 130


def say(line: str) -> None:
    """Prints a line for people, with the time; a terminal that is gone is no reason to end."""
    try:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
    except OSError:
        return


def run(*, host: str, port: int, data_dir: Path, workers: int, allowed_roots: Sequence[Path] = ()) -> int:
    """Runs the platform; the exit code: 0 after an orderly stop, 1 when it could not start, 130 when it was killed."""
    data = DataDirectory(data_dir)
    try:
        roots = tuple(_directory(root) for root in allowed_roots)
        _create(data)
        with held(data.lock, f"another `tunesmith up` (process {os.getpid()})"):
            return asyncio.run(_run(data, host, port, workers, roots))
    except CannotStart as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


async def _run(data: DataDirectory, host: str, port: int, workers: int, roots: tuple[Path, ...]) -> int:
    data.url.unlink(missing_ok=True)
    if leftovers := end_leftovers(data.processes):
        say(f"ended what a killed `tunesmith up` left behind: {', '.join(leftovers)}")
    request = Request(data, host, ports.claim(host, port), workers, roots)
    identity.prepare(data, SERVICES)
    table = programs(request, ports.assign(request.internal, data.ports))
    record = recorder(data.processes, request.url)
    supervisor = Supervisor(table, data.log, say=say, changed=record, patience=Patience())
    stop, killed = asyncio.Event(), asyncio.Event()
    _on_signals(lambda: _ask_to_stop(supervisor, stop, killed))
    started = time.monotonic()
    say(f"starting {len(table)} processes; logs in {data.logs}")

    def serving() -> None:
        write_whole(data.url, request.url + "\n", 0o644)
        say(f"everything serves after {time.monotonic() - started:.1f} s\n{welcome(request)}")

    try:
        await supervisor.run(stop, serving)
    finally:
        data.url.unlink(missing_ok=True)
    say("stopped")
    return STOPPED_BY_USER if killed.is_set() else 0


def _ask_to_stop(supervisor: Supervisor, stop: asyncio.Event, killed: asyncio.Event) -> None:
    if not stop.is_set():
        say("stopping; once more kills everything at once")
        stop.set()
    else:
        killed.set()
        supervisor.kill()


def _on_signals(act: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, act)


def _create(data: DataDirectory) -> None:
    try:
        data.create()
    except OSError as error:
        raise CannotStart(f"the data directory {data.root} cannot be used: {error.strerror or error}") from None


def _directory(path: Path) -> Path:
    real = path.expanduser().absolute()
    if not real.is_dir():
        raise CannotStart(f"--allow-root {path} is not a directory")
    return real


def welcome(request: Request) -> str:
    """What somebody needs to know to begin."""
    data, url = request.data, request.url
    lines = [
        "",
        f"  Tunesmith   {url}/docs#token={data.admin_token.read_text().strip()}",
        f"  Token       {data.admin_token} (administrator)",
        f"  Submit      tunesmith train --data-dir {data.root} --base-model MODEL --dataset FILE --watch",
        f'              curl -H "x-token: $(cat {data.admin_token})" {url}/finetuning/getTaskList',
        f"  Models      {', '.join(str(root) for root in (data.root, *request.allowed_roots))}",
        "  Stop        Ctrl-C",
    ]
    if not is_loopback(request.host):
        lines.append("  Warning     other machines can reach this over plain HTTP; put TLS in front of it")
    return "\n".join([*lines, ""])
