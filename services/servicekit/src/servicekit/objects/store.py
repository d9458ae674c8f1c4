"""The port through which services keep artifacts, and the rules for keys that every store shares."""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from servicekit.errors import InvalidArgument, Problem

MAX_KEY_BYTES = 1024
MAX_SEGMENT_BYTES = 255
CHUNK_BYTES = 1024 * 1024
MAX_PRESIGN = timedelta(days=7)

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object: its key, its size in bytes, when it was last written (UTC)."""

    key: str
    size: int
    modified: datetime


class ObjectStore(Protocol):
    """Keeps immutable blobs under slash-separated keys.

    A write is visible whole or not at all, and durable when the call returns. Every method raises InvalidArgument for
    a bad key, PermissionDenied when the store refuses, ResourceExhausted when it is full and Unavailable when it
    cannot be reached. Trouble with a local file that a caller names is an ordinary OSError.
    """

    async def prepare(self) -> None:
        """Makes sure that the store can be used, creating its root where that is allowed."""

    async def put_file(self, key: str, path: Path) -> None:
        """Stores the content of a local file, replacing what was there."""

    async def put_bytes(self, key: str, data: bytes, if_absent: bool = False) -> None:
        """Stores data. With if_absent an existing object is kept and AlreadyExists raised."""

    async def get_file(self, key: str, path: Path) -> None:
        """Writes an object to a local file, whole or not at all, making its folder. NotFound without the object."""

    async def get_bytes(self, key: str) -> bytes:
        """The whole object; for small ones. NotFound without it."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Streams length bytes from start, all without a length; nothing beyond the end. NotFound without it."""

    async def stat(self, key: str) -> ObjectInfo | None:
        """What is known of an object, None without it."""

    def list(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """Objects whose key begins with prefix. Folders come together, their order is the store's own."""

    async def delete(self, key: str) -> None:
        """Removes an object; nothing happens without it."""

    async def delete_prefix(self, prefix: str) -> None:
        """Removes every object under a prefix, which must end in a slash."""

    async def presigned_get(self, key: str, expires: timedelta) -> str:
        """An address that anybody can read the object from until it expires. Unimplemented where there is none."""

    async def presigned_put(self, key: str, expires: timedelta) -> str:
        """An address that anybody can write the object to until it expires. Unimplemented where there is none."""

    async def close(self) -> None:
        """Gives up threads and connections."""


def check_key(key: str) -> str:
    """Returns a key that every store can hold. Raises InvalidArgument for any other."""
    problem = _problem_of(key)
    if not problem and not all(key.split("/")):
        problem = "has an empty part: no leading, trailing or double slashes"
    if problem:
        raise InvalidArgument(problems=[Problem("key", f"{key[:200]!r} {problem}")], reason="BAD_OBJECT_KEY")
    return key


def is_key(key: str) -> bool:
    """Whether every store can hold a key."""
    return not _problem_of(key) and all(key.split("/"))


def check_prefix(prefix: str) -> str:
    """Returns a prefix that keys can have; the empty one is allowed. Raises InvalidArgument for any other."""
    problem = _problem_of(prefix) if prefix else ""
    if not problem and prefix and not all(prefix.split("/")[:-1]):
        problem = "has an empty part: no leading or double slashes"
    if problem:
        raise InvalidArgument(problems=[Problem("prefix", f"{prefix[:200]!r} {problem}")], reason="BAD_OBJECT_KEY")
    return prefix


def check_folder(prefix: str) -> str:
    """Returns a prefix that names a folder. Raises InvalidArgument for one that could match a neighbour's objects."""
    if not prefix.endswith("/"):
        message = f"{prefix[:200]!r} does not end in a slash, so it could match objects of its neighbours"
        raise InvalidArgument(problems=[Problem("prefix", message)], reason="BAD_OBJECT_KEY")
    return check_prefix(prefix)


def check_range(start: int, length: int | None) -> None:
    """Raises InvalidArgument for a negative start or length."""
    fields = {"start": start, "length": length or 0}
    problems = [Problem(name, f"is {value}, must not be negative") for name, value in fields.items() if value < 0]
    if problems:
        raise InvalidArgument(problems=problems)


def check_expiry(expires: timedelta) -> timedelta:
    """Returns how long a presigned address may live. Raises InvalidArgument outside 1 second to 7 days."""
    if not timedelta(seconds=1) <= expires <= MAX_PRESIGN:
        raise InvalidArgument(problems=[Problem("expires", f"is {expires}, must be between 1 second and 7 days")])
    return expires


def _problem_of(key: str) -> str:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "cannot be written in UTF-8"
    parts = key.split("/")
    rules = {
        "is empty": not key,
        f"is longer than {MAX_KEY_BYTES} bytes": size > MAX_KEY_BYTES,
        "holds a backslash or a control character": _FORBIDDEN.search(key) is not None,
        "holds a . or .. part": any(part in (".", "..") for part in parts),
        f"has a part longer than {MAX_SEGMENT_BYTES} bytes": max(len(part.encode()) for part in parts)
        > MAX_SEGMENT_BYTES,
    }
    return next((problem for problem, broken in rules.items() if broken), "")
