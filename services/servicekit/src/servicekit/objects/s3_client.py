"""The minio client, set up so that lost requests are repeated where that is safe, and its errors translated."""

from collections.abc import Mapping
from typing import Any

import urllib3
from minio import Minio
from minio.datatypes import Object, Part
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError

from servicekit import errors
from servicekit.objects.s3_address import S3Address

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 10.0
TRANSIENT_STATUS = (429, 500, 502, 503, 504)
S3_ERRORS = (HTTPError, MinioException)

_MISSING = {"NoSuchKey", "NoSuchObject", "NoSuchVersion"}
_REFUSED = {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "RequestTimeTooSkewed"}
_FULL = {"XMinioStorageFull", "QuotaExceeded", "EntityTooLarge", "InsufficientStorage"}
_BUSY = {"SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "RequestTimeout", "InternalError"}
_BUSY |= {"ConditionalRequestConflict", "OperationAborted"}


class _Pool(urllib3.PoolManager):
    """Repeats a request after trouble in transport only where a second execution does no harm."""

    def __init__(self, retries: int, connections: int) -> None:
        super().__init__(
            maxsize=connections,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        )
        self._safe = urllib3.Retry(
            total=retries,
            status_forcelist=TRANSIENT_STATUS,
            allowed_methods=None,
            raise_on_status=False,
            backoff_factor=BACKOFF_SECONDS,
            backoff_jitter=BACKOFF_SECONDS,
            backoff_max=LONGEST_BACKOFF_SECONDS,
        )
        self._careful = self._safe.new(read=0, status=0, other=0)

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = False, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        headers = options.get("headers")
        conditional = isinstance(headers, urllib3.HTTPHeaderDict) and "if-none-match" in headers
        once = conditional or (method == "POST" and "uploadId=" in url)
        retries = self._careful if once else self._safe
        response = super().urlopen(method, url, redirect=redirect, retries=retries, **options)
        if method != "HEAD" and response.status in (200, 206):
            _check_whole(response.headers)
        return response


def _check_whole(headers: Mapping[str, str]) -> None:
    """Raises ProtocolError when the connection broke amid the headers, which Python takes for their end."""
    if not any(name in headers for name in ("content-length", "transfer-encoding")):
        raise ProtocolError("the answer broke off amid its headers")


class S3Client(Minio):
    """Blocking S3 operations that minio has but does not offer by themselves."""

    def __init__(self, address: S3Address) -> None:
        self.address = address
        super().__init__(
            address.endpoint,
            access_key=address.access_key,
            secret_key=address.secret_key,
            secure=address.secure,
            region=address.region,
            http_client=_Pool(address.retries, address.threads),
        )

    def put(self, name: str, data: bytes, if_absent: bool = False) -> None:
        """Writes an object in one request."""
        headers: dict[str, str | list[str] | tuple[str]] = {"Content-Type": "application/octet-stream"}
        if if_absent:
            headers["If-None-Match"] = "*"
        self._put_object(self.address.bucket, name, data, headers)

    def head(self, name: str) -> Object:
        """Size, time and etag of an object."""
        found = self.stat_object(self.address.bucket, name)
        _check_whole(found.metadata or {})
        return found

    def get(self, name: str, start: int, length: int | None, etag: str | None) -> urllib3.BaseHTTPResponse:
        """The answer to a ranged read, unread. PreconditionFailed when etag is given and is no longer the object's."""
        headers: dict[str, str | list[str] | tuple[str]] = {"If-Match": f'"{etag}"'} if etag else {}
        return self.get_object(self.address.bucket, name, start, length or 0, request_headers=headers)

    def get_part(self, name: str, start: int, length: int, etag: str) -> bytes:
        """A range of an object, whole."""
        response = self.get(name, start, length, etag)
        try:
            data = response.read()
        finally:
            response.release_conn()
        return bytes(data)

    def close(self) -> None:
        """Closes idle connections."""
        self._http.clear()

    def begin_parts(self, name: str) -> str:
        """Begins an object of several parts; its upload id."""
        return self._create_multipart_upload(self.address.bucket, name, {})

    def put_part(self, name: str, upload: str, number: int, data: bytes) -> Part:
        """Writes part number (from 1) of an upload."""
        return Part(number, self._upload_part(self.address.bucket, name, data, None, upload, number))

    def finish_parts(self, name: str, upload: str, parts: list[Part]) -> None:
        """Makes the object appear."""
        self._complete_multipart_upload(self.address.bucket, name, upload, parts)

    def drop_parts(self, name: str, upload: str) -> None:
        """Forgets an upload and frees its parts."""
        self._abort_multipart_upload(self.address.bucket, name, upload)


def broke_off(error: BaseException) -> bool:
    """Whether an answer had begun to come when the connection failed. Nobody has repeated the request yet."""
    return isinstance(error, HTTPError) and not isinstance(error, MaxRetryError)


def code_of(error: BaseException) -> str:
    """The S3 error code, empty when the server gave none."""
    return (error.code or "") if isinstance(error, S3Error) else ""


def translate(error: Exception, what: str) -> errors.TunesmithError:
    """The error that callers know for one of the minio client. It holds no credentials."""
    code, status = code_of(error), _status(error)
    if code == "PreconditionFailed":
        return errors.AlreadyExists(f"object {what} exists already")
    if code in _MISSING:
        return errors.NotFound(f"there is no object {what}", reason="NO_OBJECT")
    if code == "NoSuchBucket":
        return errors.FailedPrecondition(f"the bucket of {what} does not exist", reason="NO_BUCKET")
    return _trouble(error, f"{what}: {_words(error)}", code, status)


def _trouble(error: Exception, text: str, code: str, status: int) -> errors.TunesmithError:
    if code in _REFUSED or status in (401, 403):
        return errors.PermissionDenied(f"the object store refuses {text}")
    if code in _FULL or status in (413, 507):
        return errors.ResourceExhausted(f"the object store is full: {text}", reason="OBJECT_STORE_FULL")
    if code in _BUSY or status in TRANSIENT_STATUS or isinstance(error, HTTPError):
        return errors.Unavailable(f"the object store failed on {text}")
    return errors.Internal(f"the object store gave an unexpected answer on {text}")


def _status(error: BaseException) -> int:
    if isinstance(error, S3Error):
        return int(error.response.status)
    if isinstance(error, ServerError):
        return int(error.status_code)
    return int(getattr(error, "_code", 0)) if isinstance(error, InvalidResponseError) else 0


def _words(error: BaseException) -> str:
    if isinstance(error, S3Error):
        return f"{error.code}: {error.message}"
    return f"{type(error).__name__}: {error}"[:500]
