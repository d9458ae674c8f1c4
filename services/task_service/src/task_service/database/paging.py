"""Tokens of pages: they name the last thing seen instead of counting, and hold for one query alone."""

import base64
import hashlib
import json
from typing import Any

from servicekit.errors import InvalidArgument, Problem

DEFAULT_PAGE_SIZE = 50


def digest(query: Any) -> str:
    """Stands for a query, given as anything that JSON can hold."""
    return hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()[:16]


def page_token(digest: str, *last: Any) -> str:
    """The token of the page after the thing whose key is last."""
    return base64.urlsafe_b64encode(json.dumps([digest, *last]).encode()).decode()


def parse_page_token(token: str, digest: str, *types: type) -> list[Any]:
    """The key in a token, whose parts have these types. Raises InvalidArgument for a token of another query."""
    try:
        parts: list[Any] = json.loads(base64.urlsafe_b64decode(token))
        of, *last = parts
        if of == digest and len(last) == len(types) and all(map(isinstance, last, types)):
            return last
    except (ValueError, TypeError):
        pass
    raise InvalidArgument(
        problems=[Problem("page_token", "is not the token of a page of this query; start without one")],
        reason="BAD_PAGE_TOKEN",
    )
