"""Who calls: EdDSA-signed JSON Web Tokens (RFC 7519, RFC 8037) with user, role and expiry."""

import time
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from servicekit.errors import Unauthenticated

ALGORITHM = "EdDSA"
AUDIENCE = "tunesmith"
KNOWN_TOKENS = 4096


class Role(StrEnum):
    """What a caller may do: an administrator sees every task, a service speaks for a worker."""

    ADMIN = "admin"
    USER = "user"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    user: str
    role: Role

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    @property
    def is_service(self) -> bool:
        return self.role is Role.SERVICE


# Everybody, in a deployment without authentication.
ANONYMOUS = Principal("local", Role.ADMIN)

_principal: ContextVar[Principal] = ContextVar("principal")


def current_principal() -> Principal:
    """The caller of the RPC that is being served. Raises Unauthenticated outside of one."""
    try:
        return _principal.get()
    except LookupError:
        raise Unauthenticated("the call carries no identity") from None


def set_current_principal(principal: Principal) -> None:
    """Sets the caller for the rest of this RPC; for the server's interceptor."""
    _principal.set(principal)


def generate_private_key() -> bytes:
    """A new Ed25519 signing key, PEM."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_key(private_pem: bytes) -> bytes:
    """The public half of a signing key, PEM."""
    key = serialization.load_pem_private_key(private_pem, password=None)
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class TokenIssuer:
    """Signs tokens."""

    def __init__(self, private_pem: bytes) -> None:
        self._private_pem = private_pem

    def issue(self, user: str, role: Role, lifetime: timedelta) -> str:
        """A token for user that expires after lifetime."""
        now = datetime.now(UTC)
        claims = {"sub": user, "role": role.value, "aud": AUDIENCE, "iat": now, "exp": now + lifetime}
        return jwt.encode(claims, self._private_pem, algorithm=ALGORITHM)


def expired() -> Unauthenticated:
    """The error of a token whose time is over."""
    return Unauthenticated("the token has expired; ask for a new one", reason="TOKEN_EXPIRED")


class TokenVerifier:
    """Checks tokens; the only algorithm taken is EdDSA, whatever a token's header says.

    Good tokens are remembered until they expire: a signature takes longer to check than many a call to answer.
    """

    def __init__(self, public_pem: bytes) -> None:
        self._key = serialization.load_pem_public_key(public_pem)
        self._known: dict[str, tuple[Principal, float]] = {}

    def verify(self, token: str) -> Principal:
        """The caller that a token names. Raises Unauthenticated with the reason."""
        return self.verified(token)[0]

    def verified(self, token: str) -> tuple[Principal, float]:
        """The caller that a token names, and when it expires in seconds since 1970. Raises Unauthenticated."""
        principal, expires = self._known.get(token, (None, 0.0))
        if principal is not None and time.time() < expires:
            return principal, expires
        principal, expires = self._decode(token)
        if len(self._known) >= KNOWN_TOKENS:
            self._known.clear()
        self._known[token] = principal, expires
        return principal, expires

    def _decode(self, token: str) -> tuple[Principal, float]:
        try:
            claims = jwt.decode(
                token,
                self._key,  # type: ignore[arg-type]
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                options={"require": ["exp", "sub", "role"]},
            )
            return Principal(str(claims["sub"]), Role(claims["role"])), float(claims["exp"])
        except jwt.ExpiredSignatureError:
            raise expired() from None
        except (jwt.InvalidTokenError, ValueError):
            raise Unauthenticated("the token is not valid", reason="TOKEN_INVALID") from None
