"""Lines from pipes, on the event loop that services run on and on Python's own."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from workerkit.pipes import MAX_LINE_BYTES, LineReader

Run = Callable[[Coroutine[Any, Any, None]], None]
both_loops = pytest.mark.parametrize("run", [uvloop.run, asyncio.run])


async def lines_of(reader: LineReader) -> list[bytes]:
    return [line async for lines in reader for line in lines]


@both_loops
def test_lines_come_whole_and_long_ones_in_pieces(run: Run) -> None:
    async def main() -> None:
        source, target = os.pipe()
        reader = LineReader(source)
        long = b"x" * (MAX_LINE_BYTES + 5)

        def write() -> None:
            with os.fdopen(target, "wb") as file:
                file.write(b"one\n\ntwo" + b"\n" + long + b"\nrest")

        writing = asyncio.create_task(asyncio.to_thread(write))
        assert await lines_of(reader) == [b"one", b"", b"two", long[:MAX_LINE_BYTES], b"x" * 5, b"rest"]
        await writing

    run(main())


@both_loops
def test_a_descriptor_is_closed_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed twice it could be another's: somebody's open file would go under their hands."""
    closed: list[int] = []
    close = os.close

    def record(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    monkeypatch.setattr("workerkit.pipes.os.close", record)

    async def main() -> None:
        source, target = os.pipe()
        reader = LineReader(source)
        close(target)
        assert await lines_of(reader) == []
        reader.close()
        assert closed == [source]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(source)

    run(main())


@both_loops
def test_closing_ends_the_lines_though_others_hold_the_pipe(run: Run) -> None:
    async def main() -> None:
        source, target = os.pipe()
        reader = LineReader(source)
        os.write(target, b"one\ntw")
        lines = aiter(reader)
        assert await anext(lines) == [b"one"]
        reader.close()
        assert [found async for found in lines] == [[b"tw"]]
        os.close(target)

    run(main())
