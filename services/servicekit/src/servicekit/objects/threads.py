"""Blocking work of object stores in a bounded number of threads."""

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

BATCH = 500


class Threads:
    """At most `workers` threads, started when they are needed."""

    def __init__(self, workers: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name)

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Calls function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def run_stoppable(self, function: Callable[..., T], *arguments: object) -> T:
        """Calls function(*arguments, stop) in a thread; when cancelled, sets stop and waits for the function to end."""
        stop = threading.Event()
        work = asyncio.ensure_future(self.run(function, *arguments, stop))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()
            raise

    async def iterate(self, items: Generator[T, None, None]) -> AsyncGenerator[T, None]:
        """Takes what a blocking generator yields, in batches."""
        try:
            while batch := await self.run(lambda: list(itertools.islice(items, BATCH))):
                for item in batch:
                    yield item
        finally:
            await asyncio.shield(self.run(items.close))

    async def close(self) -> None:
        """Waits for what runs; nothing can be started after it."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._executor.shutdown)


async def all_or_none(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all jobs, in order. At the first failure, the rest is cancelled and the failure raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
