"""Live events of one task, or of all: new tasks are found in the list and watched each."""

import asyncio
from contextlib import aclosing
from pathlib import Path

from tunesmith.cli import text
from tunesmith.cli.commands import as_json
from tunesmith.cli.watching import describe
from tunesmith.client import FINAL_STATES, AsyncClient, NotFound
from tunesmith.task.v1.event_pb2 import TaskEvent
from tunesmith.task.v1.task_service_pb2 import TASK_ORDER_UPDATE_TIME, ListTasksRequest

_POLL_SECONDS = 1.0
_PAGE = 200


def follow(task_id: str | None, *, json: bool, url: str | None, token: str | None, data_dir: Path | None) -> None:
    """Prints events until the task ends, or until it is interrupted."""

    async def main() -> None:
        async with AsyncClient(url, token, data_dir=data_dir) as client:
            follower = Follower(client, json=json)
            await (follower.one(task_id) if task_id else follower.all())

    try:
        asyncio.run(main())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


class Follower:
    """Watches tasks and prints what happens to them."""

    def __init__(self, client: AsyncClient, *, json: bool) -> None:
        self._client = client
        self._json = json
        self._watched: dict[str, asyncio.Task[None]] = {}
        self._settled: dict[str, int] = {}

    async def one(self, task_id: str) -> None:
        """Prints the events of one task until it ends."""
        async with aclosing(self._client.tasks.watch(task_id)) as responses:
            async for response in responses:
                self._print(response.event)

    async def all(self) -> None:
        """Prints the events of all tasks; never ends by itself."""
        first = True
        async with asyncio.TaskGroup() as group:
            while True:
                request = ListTasksRequest(page_size=_PAGE, order_by=TASK_ORDER_UPDATE_TIME)
                for task in (await self._client.tasks.list_page(request)).tasks:
                    changed = task.update_time.ToNanoseconds()
                    ended = task.state in FINAL_STATES
                    if not (ended and (first or self._settled.get(task.id, -1) >= changed)):
                        self._ensure_watched(group, task.id)
                    elif first:
                        self._settled[task.id] = changed
                first = False
                await asyncio.sleep(_POLL_SECONDS)

    def _ensure_watched(self, group: asyncio.TaskGroup, task_id: str) -> None:
        running = self._watched.get(task_id)
        if running is None or running.done():
            self._watched[task_id] = group.create_task(self._watch(task_id))

    async def _watch(self, task_id: str) -> None:
        try:
            await self.one(task_id)
            task = await self._client.tasks.get(task_id)
            self._settled[task_id] = task.update_time.ToNanoseconds()
        except NotFound:
            self._settled.pop(task_id, None)

    def _print(self, event: TaskEvent) -> None:
        if self._json:
            print(as_json(event), flush=True)
        else:
            print(f"{text.clock(event.time)} {event.task_id} {event.type:22} {describe(event)}", flush=True)
