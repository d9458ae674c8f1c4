"""Runs the archiver of logs until it kills itself just before or after a named step. For test_log_archiver alone.

Arguments: address of the broker, of the database, of the object store; component.method; "before" or "after".
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from servicekit.bus import EventBus
from servicekit.database import create_engine
from servicekit.objects import open_object_store
from task_service.database.access import Database
from task_service.streams.archives import LogArchives
from task_service.streams.log_archiver import LogArchiver


def deadly(method: Callable[..., Awaitable[Any]], when: str) -> Callable[..., Awaitable[Any]]:
    """The method, with a death by KILL."""

    async def call(*arguments: Any, **options: Any) -> None:
        if when == "after":
            await method(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return call


async def main(nats_url: str, database_url: str, objects_url: str, step: str, when: str) -> None:
    bus = await EventBus.connect(nats_url, name="dying")
    objects = open_object_store(objects_url)
    archives = LogArchives(Database(create_engine(database_url)))
    component, _, method = step.partition(".")
    target = {"bus": bus, "objects": objects, "archives": archives}[component]
    setattr(target, method, deadly(getattr(target, method), when))
    archiver = LogArchiver(bus, objects, archives, final_wait=0, purge_after=0)
    await archiver.archive_due()
    await archiver.purge_due()


asyncio.run(main(*sys.argv[1:]))
