"""The process of a model: reads wishes from a Unix socket, works on several in turns, and tells of every token.

Messages are JSON objects, one a line. In: {"op": "add", "variant", "directory"}, {"op": "remove", "variant"},
{"op": "generate", "id", "variant", "messages", "sampling", "max_tokens", "stop"}, {"op": "cancel", "id"}.
Out: {"event": "ready", "at_once", "memory"} once, or {"event": "failed", "message", "reason"} at the end;
{"event": "added", "variant", "size", "memory"} or {"event": "refused", "variant", "message", "reason"}; and of each
answer {"event": "text", "id", "text"}, then {"event": "done", "id", "finish_reason", "usage", "memory"} or
{"event": "error", "id", "message", "reason", "refused"}. The end of the socket is the end of the process.
"""

import contextlib
import selectors
import socket
from collections import deque
from pathlib import Path
from typing import Any

import orjson
import torch

from eval_service.generation.engine.answers import Answer, Wish
from eval_service.generation.engine.engines import Engine
from eval_service.generation.engine.errors import ConversationRefused, GenerationError
from eval_service.generation.engine.sampling import Sampling
from modelkit.errors import ModelkitError

SOCKET = "socket"
JOB = "job.json"
READ_BYTES = 1 << 20
OUT_OF_MEMORY = "OUT_OF_MEMORY"


class Connection:
    """Lines of JSON over the socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._partial = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(connected, selectors.EVENT_READ)

    def send(self, **message: Any) -> None:
        """Tells the service."""
        self._socket.sendall(orjson.dumps(message) + b"\n")

    def receive(self, *, wait: bool) -> list[dict[str, Any]]:
        """Messages that are there, at least one with wait. Raises EOFError when the service has gone."""
        messages: list[dict[str, Any]] = []
        while not messages and self._selector.select(None if wait else 0):
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise EOFError
            *lines, self._partial = (self._partial + data).split(b"\n")
            messages = [orjson.loads(line) for line in lines if line]
        return messages


class Turns:
    """Works on the wishes that have come, a step of each in turn; those beyond the engine's number wait in order."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self._engine = engine
        self._connection = connection
        self._waiting: dict[int, Wish] = {}
        self._running: deque[tuple[int, Answer]] = deque()

    def serve(self) -> None:
        """Serves until the service has gone."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                for message in self._connection.receive(wait=not (self._running or self._waiting)):
                    self._handle(message)
                self._begin()
                self._step()

    def _handle(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "add":
                self._add(message["variant"], Path(message["directory"]))
            case "remove":
                self._engine.remove(message["variant"])
            case "generate":
                sampling = Sampling(**message["sampling"])
                self._waiting[message["id"]] = Wish(
                    message["variant"], message["messages"], sampling, message["max_tokens"], message["stop"]
                )
            case "cancel":
                self._waiting.pop(message["id"], None)
                for running in [pair for pair in self._running if pair[0] == message["id"]]:
                    self._running.remove(running)
                    running[1].close()

    def _add(self, variant: str, directory: Path) -> None:
        try:
            size = self._engine.add(variant, directory)
        except (ModelkitError, OSError, RuntimeError) as error:
            reason = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else getattr(error, "reason", "")
            self._connection.send(event="refused", variant=variant, message=str(error), reason=reason)
            return
        self._connection.send(event="added", variant=variant, size=size, memory=memory_of_this_process())

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._engine.at_once:
            number = next(iter(self._waiting))
            wish = self._waiting.pop(number)
            try:
                self._running.append((number, Answer(self._engine, wish)))
            except Exception as error:  # noqa: BLE001 - one conversation must not end those of others
                self._fail(number, error)

    def _step(self) -> None:
        if not self._running:
            return
        number, answer = self._running.popleft()
        try:
            text = answer.step()
        except Exception as error:  # noqa: BLE001 - one answer must not end those of others
            answer.close()
            self._fail(number, error)
            return
        if text:
            self._connection.send(event="text", id=number, text=text)
        if not answer.finish_reason:
            self._running.append((number, answer))
            return
        answer.close()
        usage = {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "first_token_seconds": answer.first_token_seconds,
            "seconds": answer.seconds,
        }
        memory = memory_of_this_process()
        self._connection.send(event="done", id=number, finish_reason=answer.finish_reason, usage=usage, memory=memory)

    def _fail(self, number: int, error: Exception) -> None:
        reason = error.reason if isinstance(error, GenerationError) else "GENERATION_FAILED"
        if isinstance(error, torch.OutOfMemoryError):
            reason = OUT_OF_MEMORY
        refused = isinstance(error, ConversationRefused)
        text = str(error) if isinstance(error, GenerationError) else f"{type(error).__name__}: {error}"
        self._connection.send(event="error", id=number, message=text, reason=reason, refused=refused)


def load(job: dict[str, Any]) -> Engine:
    """The engine that a job names. Raises ModelkitError, LlamaError, OSError, torch.OutOfMemoryError."""
    if job["kind"] == "gguf":
        from eval_service.generation.engine.gguf_engine import GgufEngine

        return GgufEngine(Path(job["path"]), context=job["context"])
    from eval_service.generation.engine.base_engine import BaseEngine

    return BaseEngine(Path(job["path"]), stored=job["stored"], context=job["context"], at_once=job["at_once"])


def memory_of_this_process() -> int:
    """Bytes that this process alone takes, and its share of those that it has in common with others."""
    with Path("/proc/self/smaps_rollup").open() as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def main(directory: Path) -> int:
    """Entry of the process: directory holds the job and the service's socket."""
    job = orjson.loads((directory / JOB).read_bytes())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.connect(SOCKET)  # relative, because the path of a socket may have 107 bytes at most
        connection = Connection(connected)
        try:
            engine = load(job)
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the model
            reason = getattr(error, "reason", "")
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
                reason = OUT_OF_MEMORY
            connection.send(event="failed", message=str(error), reason=reason)
            return 1
        memory = memory_of_this_process()
        connection.send(event="ready", at_once=engine.at_once, memory=memory)
        Turns(engine, connection).serve()
    return 0
