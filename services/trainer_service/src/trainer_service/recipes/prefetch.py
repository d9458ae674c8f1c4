"""Prepares what comes next in a thread while the present is worked on."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """Yields the items in order; up to depth of them are ready ahead. An error is raised where its item would be."""
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    over = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> None:
        while not over.is_set():
            with suppress(queue.Full):
                ready.put(entry, timeout=0.2)
                return

    def produce() -> None:
        try:
            for item in items:
                put((True, item))
                if over.is_set():
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001 - it belongs to the consumer
            put((False, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        over.set()
        thread.join()
