"""The worker's side of the fork server: keeps one alive and starts children through it."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from workerkit.fork_server import MESSAGE_BYTES
from workerkit.launcher import ChildExit, LaunchError
from workerkit.pipes import LineReader

logger = logging.getLogger(__name__)

START_SECONDS = 10.0
RESTART_SECONDS = 0.2
RESTART_CEILING_SECONDS = 10.0
SECRET_PREFIXES = ("TUNESMITH_", "AWS_", "MINIO_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what the platform's own processes are told: addresses, passwords, keys."""
    return {name: value for name, value in environment.items() if not name.startswith(SECRET_PREFIXES)}


class Warmth:
    """Whether children can be started, for those who wait for a change."""

    def __init__(self) -> None:
        self._warm, self._cold = asyncio.Event(), asyncio.Event()
        self._cold.set()

    def __bool__(self) -> bool:
        return self._warm.is_set()

    def set(self, warm: bool) -> None:
        (self._warm if warm else self._cold).set()
        (self._cold if warm else self._warm).clear()

    async def wait(self, warm: bool) -> None:
        await (self._warm if warm else self._cold).wait()


class ForkedChild:
    """A child of the fork server."""

    def __init__(self, server: "_Server", job: int, pid: int, events: LineReader, log: LineReader) -> None:
        self._server = server
        self._job = job
        self._pid = pid
        self._streams = (events, log)
        self.exited: asyncio.Future[ChildExit] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def events(self) -> AsyncIterator[list[bytes]]:
        return aiter(self._streams[0])

    @property
    def log(self) -> AsyncIterator[list[bytes]]:
        return aiter(self._streams[1])

    def terminate(self) -> None:
        self._server.request({"op": "signal", "id": self._job, "signal": int(signal.SIGTERM)})

    def kill(self) -> None:
        self._server.request({"op": "kill", "id": self._job})

    async def wait(self) -> ChildExit:
        return await asyncio.shield(self.exited)


class _Server:
    """One fork server process and the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, warm: Warmth) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.ready: asyncio.Future[None] = loop.create_future()
        self._warm = warm
        self.gone: asyncio.Future[None] = loop.create_future()
        self._control = control
        self._starting: dict[int, asyncio.Future[ForkedChild]] = {}
        self._streams: dict[int, tuple[LineReader, LineReader]] = {}
        self._children: dict[int, ForkedChild] = {}
        self._next_job = 1
        self.used = time.monotonic()
        loop.add_reader(control.fileno(), self._read)

    @classmethod
    def spawn(cls, preload: str, entry: str, warm: Warmth) -> "_Server":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        command = [sys.executable, "-m", "workerkit.fork_server", str(theirs.fileno()), preload, entry]
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=without_secrets(os.environ),
            )
        return cls(process, ours, warm)

    @property
    def busy(self) -> bool:
        """Whether it has a child, or starts one."""
        return bool(self._children or self._starting)

    def request(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Sends a request; one that cannot be sent means that the fork server is gone or hangs, and ends it."""
        if self.gone.done():
            return
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], list(descriptors))
        except OSError as error:
            logger.warning("the fork server takes no requests: %s", error)
            self._give_up()

    def _give_up(self) -> None:
        self._warm.set(False)
        self.process.kill()

    async def start(self, job_dir: Path, env: Mapping[str, str], entry: str | None) -> ForkedChild:
        job, self._next_job = self._next_job, self._next_job + 1
        events_read, events_write = os.pipe()
        log_read, log_write = os.pipe()
        started: asyncio.Future[ForkedChild] = asyncio.get_running_loop().create_future()
        self._starting[job] = started
        self._streams[job] = (await LineReader.open(events_read), await LineReader.open(log_read))
        message = {"op": "start", "id": job, "job_dir": str(job_dir), "env": dict(env), "entry": entry}
        self.request(message, (events_write, log_write))
        os.close(events_write)
        os.close(log_write)
        try:
            async with asyncio.timeout(START_SECONDS):
                return await started
        except BaseException as error:
            for stream in self._streams[job]:
                stream.close()
            if isinstance(error, TimeoutError):
                self._give_up()
                raise LaunchError(f"the fork server did not answer within {START_SECONDS:.0f} s") from None
            if isinstance(error, asyncio.CancelledError):
                self.request({"op": "kill", "id": job})
            raise
        finally:
            self._starting.pop(job, None)
            self._streams.pop(job, None)

    def _read(self) -> None:
        while True:
            try:
                data = self._control.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self._handle(json.loads(data))

    def _handle(self, message: dict[str, Any]) -> None:
        job = message.get("id", 0)
        match message["op"]:
            case "ready":
                self.ready.set_result(None)
                self._warm.set(True)
            case "started" if job in self._streams:
                child = ForkedChild(self, job, message["pid"], *self._streams[job])
                self._children[job] = child
                if (started := self._starting.get(job)) is not None and not started.done():
                    started.set_result(child)
            case "failed":
                if (started := self._starting.get(job)) is not None and not started.done():
                    started.set_exception(LaunchError(f"no child could be forked: {message['error']}"))
            case "exited":
                if (gone := self._children.pop(job, None)) is not None:
                    self.used = time.monotonic()
                    gone.exited.set_result(ChildExit(message["status"], message["peak_memory"]))

    def _lost(self) -> None:
        self._warm.set(False)
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        for child in self._children.values():
            child.exited.set_result(ChildExit(-int(signal.SIGKILL), launcher_lost=True))
        for started in self._starting.values():
            if not started.done():
                started.set_exception(LaunchError("the fork server died"))
        self._children.clear()
        self.gone.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(LaunchError("the fork server died before it was ready"))
            self.ready.exception()  # nobody needs to have waited for it

    async def stop(self) -> None:
        """Closes the socket, on which the fork server ends its children and itself."""
        if not self.ready.done():
            self.process.kill()  # it has no children, and would first import everything
        if not self.gone.done():
            self._lost()
        try:
            await asyncio.to_thread(self.process.wait, 2 * START_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)


class ForkLauncher:
    """Starts children through a fork server, which it restarts when it dies.

    With warm_seconds 0 the fork server is there from the start, so that children start at once. Else it is started for
    the first child, and ended when none has run for so long, so that an idle service takes little memory.
    """

    def __init__(self, *, preload: str, entry: str, warm_seconds: float = 0.0) -> None:
        self._preload = preload
        self._entry = entry
        self._warm_seconds = warm_seconds
        self._server: _Server | None = None
        self._warm, self._able = Warmth(), Warmth()
        self._able.set(self._on_demand)
        self._waiting: set[asyncio.Future[None]] = set()
        self._wanted = asyncio.Event()

    @property
    def _on_demand(self) -> bool:
        return self._warm_seconds > 0

    @property
    def warm(self) -> bool:
        """Whether a child can be started without waiting."""
        return bool(self._warm)

    @property
    def pid(self) -> int | None:
        """Process id of the fork server, None while there is none."""
        return self._server.process.pid if self._server else None

    async def wait_warm(self) -> None:
        """Waits until a child can be started without waiting."""
        await self._warm.wait(True)

    async def wait_able(self) -> None:
        """Waits until children can be started, be it after the fork server has been."""
        await self._able.wait(True)

    async def wait_unable(self) -> None:
        """Waits until no child can be started, because the fork server died."""
        await self._able.wait(False)

    async def run(self) -> None:
        """Keeps a fork server alive while one is wanted, until cancelled; then ends it with its children."""
        delay = RESTART_SECONDS
        while True:
            if self._on_demand:
                await self._wanted.wait()
            self._server = server = _Server.spawn(self._preload, self._entry, self._warm)
            try:
                await asyncio.shield(server.ready)
                logger.info("fork server %d is warm", server.process.pid)
                delay = RESTART_SECONDS
                self._tell(None)
                if await self._idle(server):
                    continue
            except LaunchError as error:
                logger.error("%s", error)
                self._tell(error)
            finally:
                await self._end(server)
            logger.warning("the fork server ended with status %s; starting another", server.process.returncode)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RESTART_CEILING_SECONDS)

    def _tell(self, error: LaunchError | None) -> None:
        """Tells those who wait for a fork server; one that is kept warm is waited for over failures."""
        self._able.set(error is None)
        for waiting in self._waiting:
            if waiting.done():
                continue
            if error is None:
                waiting.set_result(None)
            elif self._on_demand:
                waiting.set_exception(error)

    async def _idle(self, server: _Server) -> bool:
        """Waits until a fork server is not wanted any more; False when it died before."""
        while not server.gone.done():
            left = server.used + self._warm_seconds - time.monotonic()
            if self._on_demand and left <= 0 and not server.busy and not self._waiting:
                self._warm.set(False)
                self._wanted.clear()
                logger.info("fork server %d is not needed for now", server.process.pid)
                return True
            pause = max(left, self._warm_seconds / 10) if self._on_demand else None
            await asyncio.wait((server.gone,), timeout=pause)
        self._able.set(False)
        return False

    async def _end(self, server: _Server) -> None:
        await server.stop()
        self._server = None

    def warm_up(self) -> None:
        """Has a fork server started, or kept, for a child that is about to come."""
        self._wanted.set()
        if self._server is not None:
            self._server.used = time.monotonic()

    async def start(self, job_dir: Path, env: Mapping[str, str], *, entry: str | None = None) -> ForkedChild:
        """Starts a child once the fork server is warm; entry (`module:function`) replaces the usual one.

        Raises LaunchError when that fails, or when a fork server that is started for it does not come up.
        """
        self.warm_up()
        if not self.warm:
            await self._warmed_up()
        if self._server is None:
            raise LaunchError("there is no fork server")
        return await self._server.start(job_dir, env, entry)

    async def _warmed_up(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)


@contextlib.asynccontextmanager
async def running_launcher(*, preload: str, entry: str, warm_seconds: float = 0.0) -> AsyncIterator[ForkLauncher]:
    """A launcher whose fork server lives no longer than the context."""
    launcher = ForkLauncher(preload=preload, entry=entry, warm_seconds=warm_seconds)
    keeper = asyncio.create_task(launcher.run())
    try:
        yield launcher
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
