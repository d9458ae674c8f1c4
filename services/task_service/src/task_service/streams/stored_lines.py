"""Reading lines of a stored log from any line on, from whichever end is nearer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from servicekit.errors import Internal
from servicekit.objects import ObjectStore
from task_service.streams.archives import StoredLog
from task_service.streams.lines import from_text
from tunesmith.task.v1.task_pb2 import LogLine

BLOCK_BYTES = 256 * 1024
PORTION_LINES = 1000


async def read_lines(
    objects: ObjectStore, key: str, stored: StoredLog, first: int
) -> AsyncGenerator[list[LogLine], None]:
    """Stored lines from number first (0-based) on, in portions. NotFound when the object is gone."""
    if first >= stored.lines:
        return
    start = await _offset(objects, key, stored, first)
    pending = b""
    portion: list[LogLine] = []
    async with aclosing(objects.read(key, start, stored.size - start)) as blocks:
        async for block in blocks:
            *whole, pending = (pending + block).split(b"\n")
            for line in whole:
                portion.append(from_text(line))
                first += 1
                if len(portion) == PORTION_LINES:
                    yield portion
                    portion = []
    if portion:
        yield portion
    if first != stored.lines or pending:
        raise Internal(f"the stored log {key} is damaged: {first} lines of {stored.lines} are whole")


async def _offset(objects: ObjectStore, key: str, stored: StoredLog, line: int) -> int:
    """Where a line begins, in bytes."""
    if line == 0:
        return 0
    if line <= stored.lines // 2:
        return await _offset_from_start(objects, key, stored, line)
    return await _offset_from_end(objects, key, stored, stored.lines - line)


async def _offset_from_start(objects: ObjectStore, key: str, stored: StoredLog, lines: int) -> int:
    offset = 0
    async with aclosing(objects.read(key, 0, stored.size)) as blocks:
        async for block in blocks:
            count = block.count(b"\n")
            if count >= lines:
                return offset + _after_newline(block, lines)
            lines -= count
            offset += len(block)
    raise Internal(f"the stored log {key} is damaged: it ends after {offset} bytes of {stored.size}")


async def _offset_from_end(objects: ObjectStore, key: str, stored: StoredLog, lines: int) -> int:
    """Where the last so many lines begin."""
    end = stored.size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        async with aclosing(objects.read(key, start, end - start)) as blocks:
            block = b"".join([part async for part in blocks])
        count = block.count(b"\n")
        # The line before the wanted ones ends one line end earlier.
        if count > lines:
            return start + _after_newline(block, count - lines)
        lines -= count
        end = start
    return 0


def _after_newline(block: bytes, number: int) -> int:
    """Offset in block just after its line end with this number, counted from 1."""
    position = 0
    for _ in range(number):
        position = block.index(b"\n", position) + 1
    return position
