"""The lines of a file of any size, in bounded memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

MAX_LINE_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(
    path: Path, max_line_bytes: int = MAX_LINE_BYTES, see: Callable[[bytes], object] | None = None
) -> Iterator[tuple[int, bytes | None]]:
    """Yields (offset in bytes, line without its newline) of each line; None stands for a line that is too long.

    A byte order mark at the start is passed over. Memory stays below the block size plus twice the longest line
    allowed, whatever the file holds. see is given every byte of the file in turn, for a hash.
    """
    with path.open("rb", buffering=0) as file:
        offset, rest, skipping = 0, b"", False
        if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
            offset = len(BYTE_ORDER_MARK)
        file.seek(offset)
        while block := file.read(BLOCK_BYTES):
            if see is not None:
                see(block)
            *lines, rest = (rest + block if rest else block).split(b"\n")
            for line in lines:
                end = offset + len(line) + 1
                yield offset, None if skipping or len(line) > max_line_bytes else line
                offset, skipping = end, False
            if skipping or len(rest) > max_line_bytes:
                offset, rest, skipping = offset + len(rest), b"", True
        if rest or skipping:
            yield offset, None if skipping else rest
