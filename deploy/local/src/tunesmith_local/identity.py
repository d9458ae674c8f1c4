"""The platform's signing key and the tokens that it makes, all readable by their owner alone."""

from datetime import timedelta
from pathlib import Path

from servicekit.errors import Unauthenticated
from servicekit.identity import Role, TokenIssuer, TokenVerifier, generate_private_key, public_key
from tunesmith_local.files import write_whole
from tunesmith_local.layout import DataDirectory

ADMINISTRATOR = "admin"
ADMIN_LIFETIME = timedelta(days=365)
SERVICE_LIFETIME = timedelta(days=3650)


def signing_key(data: DataDirectory) -> Path:
    """Where the private key lies."""
    return data.keys / "signing.pem"


def verifying_key(data: DataDirectory) -> Path:
    """Where the public key lies."""
    return data.keys / "verifying.pem"


def service_token(data: DataDirectory, name: str) -> Path:
    """Where the token of a service lies."""
    return data.keys / f"{name}.token"


def prepare(data: DataDirectory, services: tuple[str, ...]) -> None:
    """Makes the key pair once, the services' tokens anew, and the administrator's token when it is missing or worn."""
    private = _private_key(data)
    public = public_key(private)
    write_whole(verifying_key(data), public.decode(), 0o644)
    issuer = TokenIssuer(private)
    for name in services:
        write_whole(service_token(data, name), issuer.issue(name, Role.SERVICE, SERVICE_LIFETIME))
    if not _valid(data.admin_token, TokenVerifier(public)):
        write_whole(data.admin_token, issuer.issue(ADMINISTRATOR, Role.ADMIN, ADMIN_LIFETIME) + "\n")


def issue_token(root: Path, user: str, role: str, lifetime: timedelta) -> str:
    """A token signed with the key of a data directory. Raises FileNotFoundError when it has none."""
    return TokenIssuer(signing_key(DataDirectory(root)).read_bytes()).issue(user, Role(role), lifetime)


def _private_key(data: DataDirectory) -> bytes:
    path = signing_key(data)
    if not path.exists():
        write_whole(path, generate_private_key().decode())
    path.chmod(0o600)
    return path.read_bytes()


def _valid(path: Path, verifier: TokenVerifier) -> bool:
    try:
        verifier.verify(path.read_text().strip())
    except (OSError, Unauthenticated):
        return False
    return True
