"""Compressed files as streams that are read once, forwards, in little memory, and that end before they fill a disk."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Self

XZ_MEMORY_BYTES = 128 << 20  # as much as "xz -9" asks for, twice over; a header may ask for 4 GiB
READ_BYTES = 1 << 16
KEPT_BYTES = 1 << 10  # tarfile looks one byte back


class XzReader:
    """Reads .xz and .lzma with a limit of memory, which lzma.open has not. Raises LZMAError, EOFError."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb")
        self._decompressor = _decompressor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """At most size bytes; none at the end."""
        while True:
            data = b""
            if self._decompressor.eof:  # another stream may follow, after zeros
                if not (data := self._decompressor.unused_data.lstrip(b"\0") or self._next_stream()):
                    return b""
                self._decompressor = _decompressor()
            elif self._decompressor.needs_input and not (data := self._file.read(READ_BYTES)):
                raise EOFError("it is cut off")
            if found := self._decompressor.decompress(data, size):
                return found

    def _next_stream(self) -> bytes:
        while block := self._file.read(READ_BYTES):
            if data := block.lstrip(b"\0"):
                return data
        return b""


def _decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=XZ_MEMORY_BYTES)


# How a file is opened, by the end of its name.
OPENERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(("gz", "tgz"), gzip.open),
    **dict.fromkeys(("bz2", "tbz2"), bz2.open),
    **dict.fromkeys(("xz", "txz"), XzReader),
}


class Forwards:
    """A stream with as much of seeking as tarfile needs: forwards, by reading, and a few bytes back.

    Of a stream that can seek, going back would mean unpacking everything again. After most bytes the refusal is raised.
    """

    def __init__(self, stream: Any, most: int, refusal: Exception) -> None:
        self._stream, self._left, self._refusal = stream, most, refusal
        self._place = self._back = 0
        self._kept = b""

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place - self._back

    def seek(self, position: int) -> int:
        """Goes to a place, or to the end when that comes first. Raises EOFError for one that was given up."""
        self._back = max(0, self._place - position)
        if self._back > len(self._kept):
            raise EOFError("its members are out of order")
        while self._place < position and self._take(position - self._place):
            pass
        return self.tell()

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        parts = [self._kept[len(self._kept) - self._back :][:size]]
        self._back -= len(parts[0])
        missing = size - len(parts[0])
        while missing and (block := self._take(missing)):
            parts.append(block)
            missing -= len(block)
        return b"".join(parts)

    def _take(self, size: int) -> bytes:
        block: bytes = self._stream.read(min(size, READ_BYTES))
        self._place += len(block)
        self._left -= len(block)
        if self._left < 0:
            raise self._refusal
        self._kept = (self._kept + block)[-KEPT_BYTES:]
        return block
