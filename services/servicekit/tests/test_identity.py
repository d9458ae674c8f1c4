"""Tokens: what is signed, and what is not taken."""

import base64
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from servicekit.errors import Unauthenticated
from servicekit.identity import (
    Principal,
    Role,
    TokenIssuer,
    TokenVerifier,
    current_principal,
    generate_private_key,
    public_key,
)

PRIVATE = generate_private_key()
PUBLIC = public_key(PRIVATE)


@pytest.fixture
def verifier() -> TokenVerifier:
    return TokenVerifier(PUBLIC)


def claims(**changes: object) -> dict[str, object]:
    now = datetime.now(UTC)
    return {"sub": "ann", "role": "user", "aud": "tunesmith", "exp": now + timedelta(minutes=5), **changes}


def test_a_token_names_its_user(verifier: TokenVerifier) -> None:
    for role in Role:
        token = TokenIssuer(PRIVATE).issue("ann", role, timedelta(minutes=1))
        assert verifier.verify(token) == verifier.verify(token) == Principal("ann", role)


@pytest.mark.parametrize(
    "token",
    [
        jwt.encode(claims(aud="other"), PRIVATE, algorithm="EdDSA"),
        jwt.encode(claims(role="emperor"), PRIVATE, algorithm="EdDSA"),
        jwt.encode({key: value for key, value in claims().items() if key != "exp"}, PRIVATE, algorithm="EdDSA"),
        jwt.encode({key: value for key, value in claims().items() if key != "role"}, PRIVATE, algorithm="EdDSA"),
        jwt.encode({key: value for key, value in claims().items() if key != "aud"}, PRIVATE, algorithm="EdDSA"),
        jwt.encode(claims(), generate_private_key(), algorithm="EdDSA"),
        jwt.encode(claims(), "", algorithm="none"),
        jwt.encode(claims(), "a shared secret of enough bytes, 32", algorithm="HS256"),
        "",
        "a.b.c",
        "....",
        "\x00",
        "e30.e30.",
    ],
)
def test_other_tokens_are_not_taken(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(token)
    assert caught.value.reason == "TOKEN_INVALID"


def test_the_public_key_is_no_shared_secret(verifier: TokenVerifier) -> None:
    """The confusion of algorithms (CVE-2022-29217): an HMAC keyed with what everybody knows."""
    import hashlib
    import hmac

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value, default=lambda time: int(time.timestamp())).encode()).rstrip(
            b"="
        )

    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(claims(role="admin"))
    signature = base64.urlsafe_b64encode(hmac.digest(PUBLIC, signed, hashlib.sha256)).rstrip(b"=")
    with pytest.raises(Unauthenticated):
        verifier.verify((signed + b"." + signature).decode())


def test_a_changed_token_is_not_taken(verifier: TokenVerifier) -> None:
    header, payload, signature = TokenIssuer(PRIVATE).issue("ann", Role.USER, timedelta(minutes=1)).split(".")
    verifier.verify(f"{header}.{payload}.{signature}")
    decoded = json.loads(base64.urlsafe_b64decode(payload + "=="))
    forged = base64.urlsafe_b64encode(json.dumps(decoded | {"role": "admin"}).encode()).rstrip(b"=").decode()
    with pytest.raises(Unauthenticated):
        verifier.verify(f"{header}.{forged}.{signature}")


def test_a_remembered_token_expires(verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    token = TokenIssuer(PRIVATE).issue("ann", Role.USER, timedelta(seconds=30))
    verifier.verify(token)
    later = datetime.now(UTC) + timedelta(seconds=31)

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return later

    monkeypatch.setattr("servicekit.identity.time.time", later.timestamp)
    monkeypatch.setattr("jwt.api_jwt.datetime", Later)
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(token)
    assert caught.value.reason == "TOKEN_EXPIRED"


def test_there_is_no_caller_outside_of_a_call() -> None:
    with pytest.raises(Unauthenticated):
        current_principal()
