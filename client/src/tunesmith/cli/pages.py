"""Lists that the platform hands out page by page."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

_PAGE = 1000  # the most that one page may have


def collect(page: Callable[[int, str], tuple[Iterable[M], str]], limit: int | None = None) -> list[M]:
    """The first messages of a list, at most limit of them, else all.

    page gets a size and the token of a page, "" for the first, and returns its messages and the token of the next.
    """
    found: list[M] = []
    token = ""
    while limit is None or len(found) < limit:
        items, token = page(min(limit or _PAGE, _PAGE), token)
        found += items
        if not token:
            break
    return found[:limit]
