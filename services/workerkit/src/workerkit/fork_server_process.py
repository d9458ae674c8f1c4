"""A fork server process and its children as the worker holds them: the socket to it, and what it says of them."""

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

    def __init__(self, server: "ForkServerProcess", job: int, pid: int, events: LineReader, log: LineReader) -> None:
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


class ForkServerProcess:
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
    def spawn(cls, preload: str, entry: str, warm: Warmth) -> "ForkServerProcess":
        """Starts one, which tells when it is ready. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        command = [sys.executable, "-m", "workerkit.fork_server", str(theirs.fileno()), preload, entry]
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.enter_context(ours)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=without_secrets(os.environ),
            )
            unless_started.pop_all()
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
        self._streams[job] = (LineReader(events_read), LineReader(log_read))
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
