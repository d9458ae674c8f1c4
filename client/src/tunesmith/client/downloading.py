"""Downloads into a part beside the file: gone on with where a connection broke, whole and verified under its name."""

import hashlib
from pathlib import Path
from typing import IO

import httpx

from tunesmith.client.config import Config
from tunesmith.client.errors import ApiError, InvalidArgument, Problem, Unavailable
from tunesmith.client.exchange import Retries, raise_for_status

PART = ".part"


class Download:
    """The rules of fetching one file, free of any network; files are written by whoever moves the bytes.

    With a sha256 the file is verified, and a part that lies there already is gone on with; without one it is fetched
    anew.
    """

    def __init__(self, address: str, target: Path, config: Config, *, sha256: str = "", size: int = 0) -> None:
        self.target = target
        self.part = target.with_name(target.name + PART)
        self.size = size
        self.finished = False
        self._address = address
        self._sha256 = sha256
        self._config = config
        self._retries = Retries(config)
        self._resumed = False

    def prepare(self) -> None:
        """Makes the directory; a part that fits nothing goes."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if not self._sha256 or self.done > self.size:
            self.part.unlink(missing_ok=True)
        self._resumed = self.done > 0
        self.finished = bool(self._sha256) and self.done == self.size and self.part.exists()

    @property
    def done(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request of what is missing."""
        headers = {"accept-encoding": "identity", **self._config.headers}
        if self._sha256 and (done := self.done):
            headers |= {"range": f"bytes={done}-", "if-range": f'"{self._sha256}"'}
        return http.build_request(
            "GET", self._config.url + self._address, headers=headers, timeout=self._config.stream_timeout
        )

    def open(self, response: httpx.Response, content: bytes) -> IO[bytes]:
        """The part, at the place where the answer goes on. Raises ApiError; content is that of an error."""
        raise_for_status(response, content)
        goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
        if not goes_on:
            self._resumed = False
            self.size = self.size or int(response.headers.get("content-length", 0))
        return self.part.open("ab" if goes_on else "wb")

    def received(self) -> None:
        """Something has come: the next failure is the first again."""
        self._retries.succeeded()

    def pause(self, failure: httpx.TransportError | ApiError) -> float:
        """Seconds before the next try; raises when the failure is final."""
        return self._retries.pause(failure, True)

    def complete(self) -> bool:
        """Puts the file in its place; False when a part that was gone on with was another file's and has to be fetched
        anew. Raises Unavailable when what came is not what was stored. Reads the whole file.
        """
        if self._sha256 and _sha256(self.part) != self._sha256:
            self.part.unlink()
            if self._resumed:
                self._resumed = self.finished = False
                return False
            raise Unavailable(f"{self.target.name} came with another SHA-256 than {self._sha256}; download it again")
        self.part.replace(self.target)
        return True


def target_file(path: Path | str, name: str) -> Path:
    """Where a file of some name goes: path itself, or below it when that is a directory.

    Raises InvalidArgument for a name that would lead out of the directory.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return place
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or any(part != Path(part).name for part in parts):
        raise InvalidArgument(f"{name!r} is no name of a file", problems=[Problem("name", "is no name of a file")])
    return place.joinpath(*parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
