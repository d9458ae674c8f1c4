"""Threads for long work on files: few, and their own, so that nothing else of the service waits for them."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from workerkit.turns import Limits, Turns

P = ParamSpec("P")
T = TypeVar("T")

MOST_WAITING = 512
EVERYBODY = "everybody"


class Threads:
    """So many threads at most; what waits for one and is given up never begins."""

    def __init__(self, count: int) -> None:
        self._turns = Turns(Limits(count, count, MOST_WAITING, MOST_WAITING + 1))

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of a function; when cancelled after it has begun, this ends with it.

        Raises ResourceExhausted when too many wait.
        """
        async with self._turns.of(EVERYBODY):
            return await self._turns.run(function, *args, **kwargs)
