"""What a tokenizer.model holds, counted without a library: how many pieces, each of a sensible size.

A library that reads the file would believe whatever it states; here nothing is taken into memory that is larger than
the file, and a file with more or longer pieces than any tokenizer has is refused.
"""

from collections.abc import Iterator
from pathlib import Path

MAX_FILE_BYTES = 64 << 20
MAX_PIECES = 1 << 20
MAX_PIECE_BYTES = 1 << 10
# Of the protobuf wire format (protobuf.dev/programming-guides/encoding).
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
PIECES = 1  # field of sentencepiece's ModelProto
MAX_VARINT_BYTES = 10


def read_bounded(path: Path) -> bytes:
    """A file of a sensible size. Raises ValueError, OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_FILE_BYTES >> 20} MiB")
    return content


def read_lines(path: Path) -> list[bytes]:
    """The lines of a list of tokens. Raises ValueError when they are too many or one is too long, OSError."""
    content = read_bounded(path)
    if content.count(b"\n") + content.count(b"\r") > MAX_PIECES:
        raise ValueError(f"{path.name} has more than {MAX_PIECES} lines")
    lines = content.splitlines()
    if longest := [number for number, line in enumerate(lines, start=1) if len(line) > MAX_PIECE_BYTES]:
        raise ValueError(f"{path.name}, line {longest[0]} has more than {MAX_PIECE_BYTES} bytes")
    return lines


def count_pieces(path: Path) -> int:
    """How many pieces a sentencepiece model has. Raises ValueError when it is none or has too many, OSError."""
    count = 0
    for field, size in _fields(read_bounded(path)):
        if field == PIECES:
            count += 1
            if count > MAX_PIECES:
                raise ValueError(f"{path.name} has more than {MAX_PIECES} pieces")
            if size > MAX_PIECE_BYTES:
                raise ValueError(f"{path.name}: piece {count} has more than {MAX_PIECE_BYTES} bytes")
    if not count:
        raise ValueError(f"{path.name} has no pieces")
    return count


def _fields(content: bytes) -> Iterator[tuple[int, int]]:
    """Number and bytes of each field of a message. Raises ValueError when they do not end where it ends."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        kind, size = tag & 7, 0
        if kind == VARINT:
            _, place = _varint(content, place)
        elif kind == DELIMITED:
            size, place = _varint(content, place)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError("it is not a sentencepiece model")
        place += size
        yield tag >> 3, size
    if place > len(content):
        raise ValueError("it is cut off")


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A number and where the next thing begins."""
    value = 0
    for shift, byte in enumerate(content[place : place + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, place + shift + 1
    raise ValueError("it is cut off")
