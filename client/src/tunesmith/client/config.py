"""Where the platform is and what proves who calls: one URL and one token."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tunesmith.client.errors import InvalidArgument, Problem

DEFAULT_URL = "http://127.0.0.1:8000"


def default_data_dir() -> Path:
    """TUNESMITH_DATA_DIR, or ~/.tunesmith."""
    return Path(os.environ.get("TUNESMITH_DATA_DIR") or "~/.tunesmith").expanduser()


@dataclass(frozen=True, slots=True)
class Config:
    """URL of the gateway, bearer token, and how patient the client is.

    timeout and stream_timeout are seconds without any byte from the platform; retries is the number of further tries
    after one that failed for a passing reason.
    """

    url: str
    token: str = ""
    timeout: float = 30.0
    stream_timeout: float = 60.0
    retries: int = 6

    def __post_init__(self) -> None:
        """Raises InvalidArgument for a URL that is none of HTTP."""
        if not _is_address(self.url):
            text = f"{self.url!r} is no address of a platform; write for example {DEFAULT_URL}"
            raise InvalidArgument(f"url: {text}", problems=[Problem("url", text)])

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def trust_env(self) -> bool:
        """Whether proxies named in the environment apply; never on the way to this machine itself."""
        return urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of brackets that do not close, and of a port that is none
        return False


def discover(url: str | None = None, token: str | None = None, data_dir: Path | str | None = None) -> Config:
    """Fills in what is not given: from the data directory if that is given, else from TUNESMITH_URL and
    TUNESMITH_TOKEN, else from what `tunesmith up` left in the default data directory.

    The token of the default data directory is sent to the platform of that directory alone.
    """
    folder = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    local_url, local_token = _read(folder / "run" / "url"), _read(folder / "admin.token")
    if data_dir is not None:
        url, token = url or local_url, token or local_token
    url = (url or os.environ.get("TUNESMITH_URL") or local_url or DEFAULT_URL).rstrip("/")
    token = token or os.environ.get("TUNESMITH_TOKEN")
    if not token and url == (local_url or DEFAULT_URL):
        token = local_token
    return Config(url, token or "")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
