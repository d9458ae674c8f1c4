"""One request on this surface: its query parameters, with every problem collected, and the caller's token."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gateway import http
from gateway.calls import call_metadata
from servicekit.errors import InvalidArgument, Problem

REQUEST = "tunesmith.request"
MOST = 2**31 - 1
_NUMBER = re.compile(r"[0-9]{1,18}")


class Call:
    """One request: its parameters, with every problem collected, and the identity that it is made with."""

    def __init__(self, request: Request) -> None:
        self._query = request.query_params
        self.http: http.Request = request.scope[REQUEST]
        self.problems: list[Problem] = []
        token = self.http.header(b"x-token")
        self.authorization = f"Bearer {token.removeprefix('Bearer ')}" if token else self.http.header(b"authorization")
        self.metadata = call_metadata(self.http, self.authorization)

    def text(self, name: str) -> str:
        """A query parameter, empty when it is not given."""
        return self._query.get(name, "").strip()

    def integer(self, name: str, default: int, least: int = 0) -> int:
        """A query parameter that is a whole number."""
        text = self.text(name)
        if not text:
            return default
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= MOST:
            self.problems.append(Problem(name, f"应为不小于 {least} 的整数，收到 {text[:40]!r}"))
            return default
        return int(text)

    def truth(self, name: str, default: bool) -> bool:
        """A query parameter that is true or false."""
        text = self.text(name).lower()
        if text not in ("", "true", "false", "1", "0"):
            self.problems.append(Problem(name, f"应为 true 或 false，收到 {text[:40]!r}"))
        return text in ("true", "1") if text else default

    def choice(self, name: str, choices: Mapping[str, Any], default: Any) -> Any:
        """A query parameter that is one of several words."""
        text = self.text(name)
        if text and text not in choices:
            self.problems.append(Problem(name, f"应为 {'、'.join(choices)} 之一，收到 {text[:40]!r}"))
        return choices.get(text, default)

    def require_sound(self) -> None:
        """Raises InvalidArgument when a parameter was wrong."""
        if self.problems:
            raise InvalidArgument(problems=self.problems)

    def number(self) -> int:
        """The task's number, which every route but two takes. Raises InvalidArgument."""
        text = self.text("id")
        if not text:
            self.problems.append(Problem("id", "必填"))
        elif not _NUMBER.fullmatch(text) or int(text) < 1:
            self.problems.append(Problem("id", f"应为正整数，收到 {text[:40]!r}"))
        self.require_sound()
        return int(text)
