"""Live events of one task, or of all."""

from pathlib import Path

from tunesmith.cli import text
from tunesmith.cli.commands import as_json
from tunesmith.cli.watching import describe
from tunesmith.client import Client
from tunesmith.task.v1.event_pb2 import TaskEvent


def follow(task_id: str | None, *, json: bool, url: str | None, token: str | None, data_dir: Path | None) -> None:
    """Prints events until the task ends, of all tasks until it is interrupted."""
    with Client(url, token, data_dir=data_dir) as client:
        if task_id:
            for response in client.tasks.watch(task_id):
                _print(response.event, json=json)
        else:
            for happening in client.tasks.watch_all():
                _print(happening.event, json=json)


def _print(event: TaskEvent, *, json: bool) -> None:
    if json:
        print(as_json(event), flush=True)
    else:
        about = event.task_id or event.owner
        print(f"{text.clock(event.time)} {about} {event.type:22} {describe(event)}", flush=True)
