"""Work on a stream of items by several threads, its results in the order of the items."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8  # beyond, they wait for Python's lock


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields work(item) of each item. For work that is mostly native code, which lets other threads go on.

    At most twice as many items as there are threads are taken ahead of the one that is yielded. Raises what work and
    items raise; what was begun is ended then.
    """
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for result in waiting:
                result.cancel()
