"""Range requests (RFC 9110, section 14): one range of bytes of a file whose size is known."""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=\s*(?:(?P<first>\d{1,18})-(?P<last>\d{0,18})|-(?P<suffix>\d{1,18}))\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """What is sent of a file: length bytes from start. partial says that it answers a range."""

    start: int
    length: int
    partial: bool = False


def wanted(header: str, if_range: str, etag: str, size: int) -> Part | None:
    """The part that a request asks for, None when there is no such part.

    The whole file when no single range of bytes is asked for, or when If-Range names another file.
    """
    found = _RANGE.fullmatch(header)
    if found is None or (if_range and if_range != etag):
        return Part(0, size)
    if found["suffix"]:
        length = min(int(found["suffix"]), size)
        return Part(size - length, length, partial=True) if length else None
    first = int(found["first"])
    last = min(int(found["last"]), size - 1) if found["last"] else size - 1
    if found["last"] and int(found["last"]) < first:
        return Part(0, size)
    return Part(first, last - first + 1, partial=True) if first < size else None
