"""From an address to an object store. The only place that looks at the scheme."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from servicekit.errors import InvalidArgument, Problem
from servicekit.objects.store import ObjectStore

_USERINFO = re.compile(r"(?<=://).*@", re.DOTALL)


def open_object_store(url: str) -> ObjectStore:
    """Opens file:///directory or s3://KEY:SECRET@host:port/bucket/prefix?secure=true&region=us-east-1.

    Does no input or output yet; prepare() tells whether the store can be used. Raises InvalidArgument with everything
    that is wrong with the address, never repeating a secret.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        from servicekit.objects.file import FileObjectStore

        return FileObjectStore(_directory(url))
    if scheme == "s3":
        from servicekit.objects.s3 import S3ObjectStore
        from servicekit.objects.s3_address import S3Address

        return S3ObjectStore(S3Address.parse(url))
    raise _bad_address(url, f"has the scheme {scheme!r}, expected file:// or s3://")


def directory_of(url: str) -> Path | None:
    """Where the objects of an address lie on this machine; None when they lie elsewhere."""
    return _directory(url) if urlsplit(url).scheme == "file" else None


def redacted_url(url: str) -> str:
    """The address without its credentials, for logs."""
    return _USERINFO.sub("", url)


def _directory(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost"):
        raise _bad_address(url, f"names the host {parts.hostname!r}; write file:///absolute/path")
    if not path.is_absolute() or "\0" in str(path):
        raise _bad_address(url, "must hold an absolute path")
    if parts.query or parts.fragment:
        raise _bad_address(url, "takes no options")
    return path


def _bad_address(url: str, message: str) -> InvalidArgument:
    return InvalidArgument(problems=[Problem("object_store_url", f"{redacted_url(url)!r} {message}")])
