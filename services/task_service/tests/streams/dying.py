"""Runs a duty until it kills itself just before or after a named step; see world.run_until_killed.

Arguments: address of the broker, of the database, of the object store; duty; component.method; "before" or "after".
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
from task_service.streams.reaper import Reaper


def deadly(method: Callable[..., Awaitable[Any]], when: str) -> Callable[..., Awaitable[Any]]:
    """The method, with a death by KILL."""

    async def call(*arguments: Any, **options: Any) -> None:
        if when == "after":
            await method(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return call


async def main(nats_url: str, database_url: str, objects_url: str, duty: str, step: str, when: str) -> None:
    bus = await EventBus.connect(nats_url, name="dying")
    objects = open_object_store(objects_url)
    database = Database(create_engine(database_url))
    archives = LogArchives(database)
    component, _, method = step.partition(".")
    target = {"bus": bus, "objects": objects, "archives": archives, "database": database}[component]
    setattr(target, method, deadly(getattr(target, method), when))
    if duty == "archiver":
        archiver = LogArchiver(bus, objects, archives, final_wait=0, purge_after=0)
        await archiver.archive_due()
        await archiver.purge_due()
    else:
        await Reaper(database, bus, objects).reap_due()


asyncio.run(main(*sys.argv[1:]))
