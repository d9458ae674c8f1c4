"""A small HTTP server with the routes that the SDK needs, which fails on command."""

import hashlib
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from typer.testing import CliRunner, Result

from tunesmith.cli import app
from tunesmith.client import Config

TOKEN = "secret"
Fault = str | int


@dataclass
class Server:
    """The state of the server.

    faults are taken one per request: an HTTP status, "drop", or "drop after"; refusals, which are whole errors with
    their HTTP status, come after them. connections are taken one per stream: how
    many events it gets, and then "end", "error", "break", "half" (of an event), "close" or "hold". answers are
    documents by verb and path, for example "GET /v1/quota". files are sent by their path, in ranges if they are asked
    for so and their ETag is that of If-Range; cuts are taken one per file: how many of its bytes get through.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_request_id: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    connections: list[tuple[int, str]] = field(default_factory=list)
    last_event_ids: list[str] = field(default_factory=list)
    hold: Event = field(default_factory=Event)
    answers: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)

    @property
    def config(self) -> Config:
        """For a client of this server."""
        return Config(self.url, TOKEN, retries=3)

    def refuse(self, code: int, status: str, message: str, problems: Iterable[tuple[str, str]] = ()) -> None:
        """Answers the next request with an error."""
        self.refusals.append((code, error_body(code, status, message, problems)))

    def add_task(self, name: str, state: str = "STATE_PENDING", **values: Any) -> str:
        """Adds a task; its id."""
        number = len(self.tasks) + 1
        task_id = f"task{number:022}"
        self.tasks[task_id] = {"id": task_id, "number": number, "name": name, "state": state, **values}
        return task_id


def error_body(code: int, status: str, message: str, problems: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """An error in the form of the native API."""
    kind = "type.googleapis.com/google.rpc"
    details: list[dict[str, Any]] = [
        {"@type": f"{kind}.ErrorInfo", "reason": f"{status}_REASON", "domain": "tunesmith"}
    ]
    if violations := [{"field": name, "description": text} for name, text in problems]:
        details.append({"@type": f"{kind}.BadRequest", "fieldViolations": violations})
    return {"error": {"code": code, "status": status, "message": message, "details": details}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        state = self.server_state
        url = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        content = self.rfile.read(length)
        raw = self.headers.get("content-type") == "application/octet-stream"
        body = content if raw else json.loads(content) if length else None
        query = dict(parse_qsl(url.query))
        fault = state.faults.pop(0) if state.faults else None
        state.requests.append((self.command, self.path, dict(self.headers.items()), body))
        if fault == "drop":
            self._drop()
        elif isinstance(fault, int):
            self._answer(fault, error_body(fault, "UNAVAILABLE" if fault == 503 else "INTERNAL", "try again"))
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401, error_body(401, "UNAUTHENTICATED", "the token is not valid"))
        elif state.refusals:
            self._answer(*state.refusals.pop(0))
        elif url.path.endswith((":watch", "log:tail")) or url.path == "/v1/generate":
            self._stream()
        elif unquote(url.path) in state.files:
            self._file(state.files[unquote(url.path)])
        else:
            status, document = self._route(url.path, query, body)
            if fault == "drop after":
                self._drop()
            else:
                self._answer(status, document)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file(self, content: bytes) -> None:
        """Sends a file from where its range begins, as far as this connection goes."""
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        asked = self.headers.get("range") if self.headers.get("if-range", etag) == etag else None
        rest = content[int(asked.removeprefix("bytes=").rstrip("-")) :] if asked else content
        self.send_response(206 if asked else 200)
        self.send_header("etag", etag)
        self.send_header("content-length", str(len(rest)))
        self.end_headers()
        cut = self.server_state.cuts.pop(0) if self.server_state.cuts else len(rest)
        self.wfile.write(rest[:cut])
        if cut < len(rest):
            self.wfile.flush()
            self._drop()

    def _route(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        state = self.server_state
        routes: dict[str, Callable[[], tuple[int, Any]]] = {
            "GET /v1/devices": lambda: (200, {"devices": [{"id": "cpu", "cores": 2, "new_field": 1}]}),
            "GET /v1/base-models": lambda: (200, {"models": [{"id": query.get("modality", "any")}]}),
            "GET /v1/tasks": lambda: self._list(query),
            "POST /v1/tasks": lambda: self._create(body),
            "POST /v1/datasets": lambda: (200, {"dataset": {"id": "d", "size": len(body), **query}}),
        }
        if (answer := state.answers.get(f"{self.command} {path}")) is not None:
            return 200, answer
        route = routes.get(f"{self.command} {path}")
        if route:
            return route()
        task_id, _, rest = path.removeprefix("/v1/tasks/").partition("/")
        task_id, _, verb = task_id.partition(":")
        task = state.tasks.get(task_id)
        if task is None:
            return 404, error_body(404, "NOT_FOUND", f"there is no task {task_id}")
        return self._task(task, f"{self.command} {verb}{rest}", query, body)

    def _task(self, task: dict[str, Any], call: str, query: dict[str, str], body: Any) -> tuple[int, Any]:  # noqa: PLR0911
        match call:
            case "GET ":
                return 200, {"task": task}
            case "POST stop":
                task["state"] = "STATE_STOPPED" if body.get("discard") else "STATE_STOPPING"
                return 200, {"task": task}
            case "POST resume":
                task["state"] = "STATE_PENDING"
                return 200, {"task": task}
            case "DELETE ":
                if task["state"] == "STATE_RUNNING" and query.get("force") != "true":
                    return 400, error_body(400, "FAILED_PRECONDITION", "the task is running")
                del self.server_state.tasks[task["id"]]
                return 200, {}
            case "GET log":
                lines = [{"text": f"line {index}"} for index in range(5)]
                return 200, {"lines": lines[-int(query.get("tail", 0)) :], "total_lines": "5"}
            case "GET metrics":
                return 200, {"series": [{"name": "loss", "steps": ["1", "2"], "values": [2.0, "NaN"]}]}
            case "GET checkpoints":
                return 200, {"checkpoints": [{"step": "5", "size": "1000000"}]}
        return 404, error_body(404, "NOT_FOUND", call)

    def _list(self, query: dict[str, str]) -> tuple[int, Any]:
        start, size = int(query.get("page_token", 0)), int(query.get("page_size", 2))
        found = [task for task in self.server_state.tasks.values() if query.get("name_contains", "") in task["name"]]
        token = str(start + size) if start + size < len(found) else ""
        return 200, {"tasks": found[start : start + size], "next_page_token": token}

    def _create(self, body: Any) -> tuple[int, Any]:
        state = self.server_state
        if not body.get("name"):
            problems = (("name", "must not be empty"), ("spec.finetune.base_model", "does not exist"))
            return 400, error_body(400, "INVALID_ARGUMENT", "2 problems", problems)
        known = state.by_request_id.get(body["request_id"])
        task_id = known or state.add_task(body["name"], spec=body.get("spec", {}))
        state.by_request_id[body["request_id"]] = task_id
        return 200, {"task": state.tasks[task_id]}

    def _stream(self) -> None:
        """Writes what follows Last-Event-ID, as far as this connection goes."""
        state = self.server_state
        last = self.headers.get("last-event-id", "")
        state.last_event_ids.append(last)
        upto, then = state.connections.pop(0)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self._chunk(b"retry: 1\n\n: hello\n\n")
        for number, event in enumerate(state.events[:upto], start=1):
            if number > int(last or 0):
                self._chunk(f"id: {number}\ndata: {json.dumps(event)}\n\n".encode())
                self._record(event)
        match then:
            case "end":
                self._chunk(b"event: end\ndata: {}\n\n")
            case "error":
                document = json.dumps(error_body(404, "NOT_FOUND", "the task was deleted"))
                self._chunk(f"event: error\ndata: {document}\n\n".encode())
            case "half":
                self._chunk(b'id: 99\ndata: {"half": ')
            case "hold":
                self._hold()
        if then in ("break", "half"):
            self._drop()
        else:
            self._chunk(b"")

    def _hold(self) -> None:
        """Stays quiet but for signs of life, which is also when a reader notices a signal that came just before it."""
        with suppress(ConnectionError):
            while not self.server_state.hold.wait(1):
                self._chunk(b": alive\n\n")

    def _record(self, event: dict[str, Any]) -> None:
        """Makes what an event says true of its task."""
        task_id = self.path.removeprefix("/v1/tasks/").partition(":")[0]
        self.server_state.tasks.get(task_id, {}).update(event.get("event", {}).get("task", {}))

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server on a free port."""
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"server_state": state}))
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    state.hold.set()
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_platform_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("TUNESMITH_URL", "TUNESMITH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(tmp_path / "nothing"))


@pytest.fixture
def tunesmith(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command against the server."""
    monkeypatch.setenv("TUNESMITH_URL", server.url)
    monkeypatch.setenv("TUNESMITH_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words, **more: CliRunner().invoke(app, list(words), **more)
