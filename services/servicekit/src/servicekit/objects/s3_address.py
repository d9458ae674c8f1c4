"""What an s3:// address says."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from servicekit.errors import InvalidArgument, Problem
from servicekit.objects.store import is_key

ACCESS_KEY = "TUNESMITH_S3_ACCESS_KEY"
SECRET_KEY = "TUNESMITH_S3_SECRET_KEY"
EXAMPLE = "s3://KEY:SECRET@host:port/bucket/prefix?secure=true&region=us-east-1"
MEBIBYTE = 1024 * 1024

_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
_HOST = re.compile(r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?$")
_OPTIONS = {
    "secure": r"true|false",
    "region": r"[A-Za-z0-9-]{1,64}",
    "create_bucket": r"true|false",
    "part_mib": r"[5-9]|[1-9]\d{1,3}",
    "threads": r"[1-9]|[1-5]\d|6[0-4]",
    "retries": r"\d|10",
}


@dataclass(frozen=True, slots=True)
class S3Address:
    """An S3 server, a bucket and a prefix in it. part_bytes is the size of a part of a large object; at most `threads`
    requests run at once; retries counts the repetitions of one request after trouble in transport."""

    endpoint: str
    bucket: str
    prefix: str
    access_key: str
    secret_key: str = field(repr=False)
    secure: bool = True
    region: str = "us-east-1"
    create_bucket: bool = False
    part_bytes: int = 16 * MEBIBYTE
    threads: int = 8
    retries: int = 4

    def __str__(self) -> str:
        return f"s3://{self.endpoint}/{self.bucket}/{self.prefix}"

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] = os.environ) -> "S3Address":
        """Reads an address such as s3://KEY:SECRET@host:port/bucket/prefix?secure=true&region=us-east-1.

        Credentials may come from TUNESMITH_S3_ACCESS_KEY and TUNESMITH_S3_SECRET_KEY instead. In the address, special
        characters are percent-encoded. Raises InvalidArgument with all problems, and never repeats a secret.
        """
        parts = urlsplit(url)
        userinfo, _, endpoint = parts.netloc.rpartition("@")
        access_key, _, secret_key = (unquote(item) for item in userinfo.partition(":"))
        bucket, _, prefix = unquote(parts.path).lstrip("/").partition("/")
        prefix = prefix.rstrip("/")
        access_key = access_key or environment.get(ACCESS_KEY, "")
        secret_key = secret_key or environment.get(SECRET_KEY, "")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        problems = [*_address_problems(parts, endpoint, bucket, prefix), *_option_problems(options)]
        if not access_key:
            problems.append(f"has no access key: write {EXAMPLE} or set {ACCESS_KEY}")
        if not secret_key:
            problems.append(f"has no secret key: write {EXAMPLE} or set {SECRET_KEY}")
        if problems:
            raise InvalidArgument(problems=[Problem("object_store_url", problem) for problem in problems])
        return cls(
            endpoint=endpoint,
            bucket=bucket,
            prefix=f"{prefix}/" if prefix else "",
            access_key=access_key,
            secret_key=secret_key,
            secure=options.get("secure", "true") == "true",
            region=options.get("region", "us-east-1"),
            create_bucket=options.get("create_bucket") == "true",
            part_bytes=int(options.get("part_mib", 16)) * MEBIBYTE,
            threads=int(options.get("threads", 8)),
            retries=int(options.get("retries", 4)),
        )


def _address_problems(parts: SplitResult, endpoint: str, bucket: str, prefix: str) -> list[str]:
    problems = []
    if not _HOST.match(endpoint) or not 0 < int(endpoint.rpartition(":")[2] if ":" in endpoint[-6:] else 1) < 65536:
        problems.append(f"has a bad host or port (a secret must be percent-encoded): expected {EXAMPLE}")
    elif not _BUCKET.match(bucket):
        problems.append("names no valid bucket: 3 to 63 lower-case letters, digits, dots and dashes")
    elif prefix and not is_key(prefix):
        problems.append(f"has the bad prefix {prefix!r}")
    if parts.fragment:
        problems.append("holds a #; percent-encode it")
    return problems


def _option_problems(options: Mapping[str, str]) -> list[str]:
    problems = []
    for name, value in options.items():
        if name not in _OPTIONS:
            problems.append(f"has the unknown option {name!r}; known are {', '.join(_OPTIONS)}")
        elif not re.fullmatch(_OPTIONS[name], value):
            problems.append(f"has the option {name}={value!r}, which does not match {_OPTIONS[name]}")
    return problems
