"""Who opens a WebSocket, and from where.

Browsers cannot set headers here, so a token may also come as the subprotocol "bearer.TOKEN" beside the subprotocol
"tunesmith", which is the one that is accepted. A token in the URL is not taken: addresses end up in logs and histories.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.guide.surface import verify
from gateway.http import Request
from servicekit.errors import PermissionDenied
from servicekit.identity import TokenVerifier

SUBPROTOCOL = "tunesmith"
_BEARER = "bearer."


@dataclass(frozen=True, slots=True)
class Handshake:
    """Checks what a client sends when it opens a WebSocket. origins are those of other sites that may."""

    verifier: TokenVerifier | None
    origins: frozenset[str]

    def authorization(self, request: Request) -> str:
        """The header that calls on behalf of the client carry. Raises Unauthenticated, PermissionDenied."""
        self._require_own_site(request)
        given = request.header(b"authorization")
        if not given:
            tokens = (word for word in request.scope.get("subprotocols", ()) if word.startswith(_BEARER))
            token = next(tokens, "").removeprefix(_BEARER)
            given = f"Bearer {token}" if token else ""
        if self.verifier is not None:
            verify(self.verifier, given)
        return given

    @staticmethod
    def subprotocol(request: Request) -> str | None:
        """What of the offered subprotocols is spoken."""
        return SUBPROTOCOL if SUBPROTOCOL in request.scope.get("subprotocols", ()) else None

    def _require_own_site(self, request: Request) -> None:
        """Pages of other sites must be named in the settings; programs send no origin."""
        origin = request.header(b"origin")
        own = _host_of(origin) == request.header(b"host").lower()
        if origin and not own and origin not in self.origins and "*" not in self.origins:
            message = f"pages of {origin} may not connect; TUNESMITH_CORS_ORIGINS names those that may"
            raise PermissionDenied(message, reason="ORIGIN_NOT_ALLOWED")


def _host_of(origin: str) -> str:
    """Host and port of an origin, empty when it has none that could be read."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
