"""What the task commands do: one session is one client, one console and one way of printing."""

import json as json_module
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from tunesmith.cli import text
from tunesmith.cli.failures import INTERRUPTED, TASK_FAILED, UsageProblem
from tunesmith.cli.render import facts_table, task_page, task_table
from tunesmith.cli.watching import TaskView
from tunesmith.cli.wish import Wish
from tunesmith.client import Client, discover
from tunesmith.task.v1 import task_pb2
from tunesmith.task.v1.task_pb2 import LogLine, Task
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest, ListTasksRequest

M = TypeVar("M", bound=Message)

RETRIES = 4  # somebody waits at the terminal
WIDE = 240  # where no terminal limits it


def as_json(message: Message, indent: int | None = None) -> str:
    """A message as JSON with the protos' field names."""
    document = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return json_module.dumps(document, indent=indent, ensure_ascii=False)


class Session:
    """One command's connection to the platform and to the terminal."""

    def __init__(self, url: str | None, token: str | None, data_dir: Path | None, *, json: bool) -> None:
        self.client = Client(config=replace(discover(url, token, data_dir), retries=RETRIES))
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
        self.json = json
        self.tasks = self.client.tasks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def facts(self, rows: Mapping[str, str]) -> None:
        """Prints names and values, those that are empty left out."""
        self.console.print(facts_table(rows))

    def train(self, wish: Wish, name: str | None, description: str) -> Task:
        """Creates a fine-tuning task and says so."""
        request = wish.request(name or text.dated(wish.prefix))
        request.description = description
        return self.create(request)

    def create(self, request: CreateTaskRequest) -> Task:
        """Creates a task and says so."""
        task = self.tasks.create(request)
        self.told(task)
        return task

    def told(self, task: Task) -> None:
        """Says where a task stands."""
        if self.json:
            print(as_json(task), flush=True)
        else:
            print(f"{task.id} {text.state_word(task.state)} {text.harmless(task.name)}", flush=True)

    def listed(self, found: Sequence[M], table: Callable[[list[M]], Table], nothing: str) -> None:
        """Prints messages as a table, or says that there are none."""
        if self.json:
            print(json_module.dumps([json_module.loads(as_json(item)) for item in found], ensure_ascii=False))
        elif found:
            self.console.print(table(list(found)))
        else:
            self.console.print(nothing)

    def list_tasks(self, states: list[str], kind: str, source: str, name: str, limit: int) -> None:
        """Prints tasks, newest first."""
        states_asked = [_state(word) for word in states]
        request = ListTasksRequest(name_contains=name, source_task_id=source, states=states_asked)
        request.kinds.extend([task_pb2.Kind.Value(f"KIND_{kind.upper()}")] if kind else [])
        found: list[Task] = []
        request.page_size = min(limit, 1000)
        for task in self.tasks.list(request):
            found.append(task)
            if len(found) == limit:
                break
        self.listed(found, task_table, "no tasks")

    def show(self, task_id: str) -> None:
        """Prints the page of a task."""
        task = self.tasks.get(task_id)
        if self.json:
            print(as_json(task, indent=2))
        else:
            self.console.print(task_page(task, self.tasks.checkpoints(task_id)))

    def watch(self, task_id: str) -> int:
        """Shows a task until it ends; the exit code. Ctrl-C leaves the task running."""
        try:
            if self.json:
                for response in self.tasks.watch(task_id):
                    print(as_json(response.event), flush=True)
            else:
                with TaskView(self.console) as view:
                    for response in self.tasks.watch(task_id):
                        view.show(response.event)
        except KeyboardInterrupt:
            self.console.print(f"\nThe task goes on. Stop it with: tunesmith tasks stop {task_id}")
            return INTERRUPTED
        return 0 if self.tasks.get(task_id).state == task_pb2.STATE_COMPLETED else TASK_FAILED

    def logs(self, task_id: str, follow: bool, tail: int) -> None:
        """Prints the log, or its last lines, and what follows."""
        if not follow:
            self._lines(self.tasks.logs(task_id, tail=tail).lines)
            return
        skip = max(0, self.tasks.logs(task_id, tail=1).total_lines - tail) if tail else 0
        for response in self.tasks.follow_logs(task_id):
            self._lines(response.lines[skip:])
            skip = max(0, skip - len(response.lines))

    def _lines(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            print(as_json(line) if self.json else text.harmless(line.text), flush=True)

    def delete(self, task_id: str, force: bool) -> None:
        """Deletes a task and says so."""
        self.tasks.delete(task_id, force=force)
        self.told_deleted(task_id)

    def told_deleted(self, thing_id: str) -> None:
        """Says that a thing is no more."""
        print(json_module.dumps({"id": thing_id, "deleted": True}) if self.json else f"{thing_id} deleted", flush=True)


def _state(word: str) -> task_pb2.State.ValueType:
    names = [name.removeprefix("STATE_").lower() for name in task_pb2.State.keys()[1:]]
    if word.lower() not in names:
        raise UsageProblem(f"--state {word}: there are {', '.join(names)}")
    return task_pb2.State.Value(f"STATE_{word.upper()}")
