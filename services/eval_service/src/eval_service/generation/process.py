"""The service's end of a model's process: starts it, speaks to it over a Unix socket, and tells when it has died."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from eval_service.generation.stalls import until_stalled, work_done
from servicekit.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    TunesmithError,
    Unavailable,
)
from workerkit.launcher import Child, LaunchError

logger = logging.getLogger(__name__)

ENTRY = "eval_service.generation.engine.child:main"
SOCKET, JOB = "socket", "job.json"
MOST_LINE_BYTES = 1 << 24
LAST_LINES = 20
CONNECT_SECONDS = 60.0
OUT_OF_MEMORY = "OUT_OF_MEMORY"
DIED, STALLED = "MODEL_PROCESS_DIED", "MODEL_PROCESS_STALLED"


class Launcher(Protocol):
    """Starts processes that run a function, `module:name`, with a directory."""

    async def start(self, job_dir: Path, env: Mapping[str, str], *, entry: str | None = None) -> Child:
        """Starts one. Raises LaunchError."""

    def warm_up(self) -> None:
        """Gets ready to start one soon."""


class ModelProcess:
    """A process that holds a model. memory is what it takes in bytes, as it told last.

    It is ended when it has something to do and neither says nor does anything for stall_seconds.
    """

    def __init__(
        self,
        child: Child,
        folder: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stall_seconds: float,
    ) -> None:
        self._child = child
        self._folder = folder
        self._reader = reader
        self._writer = writer
        self._answers: dict[int, asyncio.Queue[dict[str, Any] | TunesmithError]] = {}
        self._unfinished: set[int] = set()  # answers that the process has not ended, whoever has yet to take them
        self._adding: dict[str, asyncio.Future[int]] = {}
        self._next = 1
        self._heard = 0
        self._stall_seconds = stall_seconds
        self._stalled = False
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.memory = 0
        self.at_once = 1
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Future[TunesmithError] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._read_log())]
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls, launcher: Launcher, folder: Path, job: Mapping[str, Any], stall_seconds: float
    ) -> "ModelProcess":
        """Starts a process that loads the model of a job; `ready` tells when it has.

        Raises Unavailable when none can be started or it keeps silent, Internal when it dies at once, and OSError.
        """
        try:
            await asyncio.to_thread(_write_job, folder, job)
            with _listening(folder) as listener:
                child = await _launched(launcher, folder)
                try:
                    connected = await _connection(listener, child)
                    reader, writer = await asyncio.open_connection(sock=connected, limit=MOST_LINE_BYTES)
                except BaseException:
                    child.kill()
                    raise
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, True)
            raise
        return cls(child, folder, reader, writer, stall_seconds)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def add(self, variant: str, directory: Path) -> int:
        """Brings an adapter into memory; its size in bytes. Raises FailedPrecondition when it does not fit."""
        future = self._adding.get(variant)
        if future is None:
            self._send(op="add", variant=variant, directory=str(directory))
            future = self._adding[variant] = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(future)

    def remove(self, variant: str) -> None:
        """Forgets an adapter."""
        self._send(op="remove", variant=variant)

    async def generate(self, variant: str, wish: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Messages "text" of an answer and at last "done"; leaving early ends the answer after the token it is at.

        Raises InvalidArgument when the conversation is refused, Internal when the process dies.
        """
        number, self._next = self._next, self._next + 1
        queue = self._answers[number] = asyncio.Queue()
        try:
            self._send(op="generate", id=number, variant=variant, **wish)
            self._unfinished.add(number)
            while True:
                message = await queue.get()
                if isinstance(message, TunesmithError):
                    raise message
                yield message
                if message["event"] == "done":
                    return
        finally:
            del self._answers[number]
            self._unfinished.discard(number)
            self._send(op="cancel", id=number)

    def kill(self) -> None:
        """Ends the process at once, so that its memory is free."""
        self._child.kill()

    async def wait(self) -> None:
        """Waits until the process has ended and its folder is removed."""
        await asyncio.shield(self.gone)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, **message: Any) -> None:
        """Tells the process; one that is about to be gone hears nothing, and whoever waits is told of its end."""
        if not self.gone.done():
            if not self._writer.is_closing():  # uvloop refuses to write to what is closed
                self._writer.write(orjson.dumps(message) + b"\n")
        elif message["op"] not in ("cancel", "remove"):
            raise self.gone.result()

    async def _read(self) -> None:
        try:
            async for line in self._reader:
                self._handle(orjson.loads(line))
        except ConnectionError:
            pass
        except Exception:  # whoever waits must not wait for ever for a process that nobody hears any more
            logger.exception("model process %d cannot be understood; it is ended", self.pid)
        self._child.kill()
        status = (await self._child.wait()).status
        self._watching.cancel()
        self._writer.close()
        self._end(Internal(self._epitaph(status), reason=STALLED if self._stalled else DIED))
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def _watch(self) -> None:
        await until_stalled(self._signs, self._stall_seconds)
        logger.error("model process %d hangs; it is ended", self.pid)
        self._stalled = True
        self._child.kill()

    def _signs(self) -> object:
        """What stays the same while the process hangs; of one that has nothing to do it never does."""
        busy = self._unfinished or self._adding or not self.ready.done()
        return (self._heard, work_done(self.pid)) if busy else object()

    async def _read_log(self) -> None:
        async for lines in self._child.log:
            for line in lines:
                self._last_lines.append(line.decode(errors="replace"))
                logger.info("model process %d: %s", self.pid, self._last_lines[-1])

    def _handle(self, message: dict[str, Any]) -> None:
        self._heard += 1
        self.memory = message.get("memory", self.memory)
        match message["event"]:
            case "ready":
                self.at_once = message["at_once"]
                self.ready.set_result(None)
            case "failed":
                self.ready.set_exception(_failure("the model cannot be loaded", message))
            case "added" | "refused" as event:
                future = self._adding.pop(message["variant"])
                if event == "added":
                    future.set_result(message["size"])
                else:
                    future.set_exception(_failure("the adapter cannot be used", message))
            case event:
                if event in ("done", "error"):
                    self._unfinished.discard(message["id"])
                if (queue := self._answers.get(message["id"])) is not None:
                    queue.put_nowait(_failure("", message) if message["event"] == "error" else message)

    def _end(self, error: Internal) -> None:
        self.gone.set_result(error)
        if not self.ready.done():
            self.ready.set_exception(error)
        self.ready.exception()  # nobody needs to have waited for it
        for future in self._adding.values():
            future.set_exception(error)
        self._adding.clear()
        for queue in self._answers.values():
            queue.put_nowait(error)

    def _epitaph(self, status: int) -> str:
        if self._stalled:
            return (
                f"the process of the model was ended: it did nothing for {self._stall_seconds:g} s. "
                "Ask again: the model is then loaded anew"
            )
        how = f"with exit code {status}"
        if status < 0:
            how = f"by signal {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            how += ", which the system sends when memory runs out"
        last = f"; it said last: {self._last_lines[-1]}" if self._last_lines else ""
        return f"the process of the model ended {how}{last}. Ask again: the model is then loaded anew"


def _failure(what: str, message: Mapping[str, Any]) -> TunesmithError:
    """The error that a message of the process tells of."""
    text, reason = ": ".join(filter(None, (what, message["message"]))), message["reason"]
    if reason == OUT_OF_MEMORY:
        return ResourceExhausted(f"memory ran out: {message['message']}", reason=reason)
    if message.get("refused"):
        return InvalidArgument(text, reason=reason)
    return FailedPrecondition(text, reason=reason)


async def _launched(launcher: Launcher, folder: Path) -> Child:
    try:
        return await launcher.start(folder, {}, entry=ENTRY)
    except LaunchError as error:
        raise Unavailable(f"no process can be started for the model: {error}", reason="NO_PROCESS") from error


def _write_job(folder: Path, job: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, mode=0o700)
    (folder / JOB).write_bytes(orjson.dumps(job))


@contextlib.contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    """A socket in a folder, whatever the length of its path: addresses may have 107 bytes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.setblocking(False)
            listener.bind(f"/proc/self/fd/{descriptor}/{SOCKET}")
            listener.listen(1)
            yield listener
    finally:
        os.close(descriptor)


async def _connection(listener: socket.socket, child: Child) -> socket.socket:
    """The connection of a child. Raises Internal when it ends without one, Unavailable when it keeps silent."""
    accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(listener))
    ending = asyncio.ensure_future(child.wait())
    try:
        await asyncio.wait((accepting, ending), timeout=CONNECT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if accepting.done():
            return accepting.result()[0]
        if not ending.done():
            raise Unavailable(
                f"the process of the model did not answer within {CONNECT_SECONDS:g} s of its start; try again",
                reason="MODEL_PROCESS_SILENT",
            )
        status = ending.result().status
        raise Internal(f"the process of the model ended at once, status {status}", reason=DIED)
    finally:
        accepting.cancel()
        ending.cancel()
