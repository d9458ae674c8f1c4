"""The rules of talking to the platform, free of any I/O: what is sent, what is retried, how a stream resumes.

Client and AsyncClient only move bytes and wait; everything they decide is decided here.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import httpx
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from tunesmith.client.config import Config
from tunesmith.client.errors import ApiError, DeadlineExceeded, Unavailable, from_document, from_response
from tunesmith.client.sse import EventParser, ServerEvent
from tunesmith.client.transcoding import HttpCall, transcode

R = TypeVar("R", bound=Message)
T = TypeVar("T")

_FIRST_DELAY = 0.2
_LONGEST_DELAY = 5.0
_PASSING = (429, 502, 503, 504)
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Operation(Generic[R, T]):
    """A call of an RPC: the request, the class of the response, and the part of it that the caller wants.

    repeatable says that doing it twice is the same as doing it once, so that a lost answer may be asked for again.
    """

    method: MethodDescriptor
    request: Message
    response: type[R]
    pick: Callable[[R], T]
    repeatable: bool = True


class Retries:
    """Counts failed tries and chooses the pause before the next: full jitter below a doubling bound."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._failures = 0
        self._limit = config.retries

    def pause(self, failure: httpx.TransportError | ApiError, repeatable: bool) -> float:
        """Seconds to wait before the next try; raises the failure as an ApiError when there is none."""
        error = failure if isinstance(failure, ApiError) else unreachable(self._config.url, failure)
        sent = not isinstance(failure, _NEVER_SENT) and error.http_status != 429
        passing = error.http_status in _PASSING or not isinstance(failure, ApiError)
        if not passing or (sent and not repeatable) or self._failures >= self._limit:
            raise error from None if error is failure else failure
        bound = min(_LONGEST_DELAY, _FIRST_DELAY * 2**self._failures)
        self._failures += 1
        return max(error.retry_after or 0.0, random.uniform(bound / 4, bound))

    def succeeded(self) -> None:
        """Forgets earlier failures, and is more patient from now on: the platform was there and will be back."""
        self._failures = 0
        self._limit = 3 * self._config.retries


class Exchange(Generic[R, T]):
    """One unary call with its retries."""

    def __init__(self, operation: Operation[R, T], config: Config, call: HttpCall | None = None) -> None:
        self._operation = operation
        self._retries = Retries(config)
        self._call = call or transcode(operation.method, operation.request)
        self._config = config

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request to send."""
        return build_request(http, self._call, self._config, {"accept": "application/json"}, self._config.timeout)

    def result(self, response: httpx.Response) -> T:
        """What the caller asked for. Raises ApiError for an answer that is an error."""
        raise_for_status(response, response.content)
        return self._operation.pick(parse(response.content, self._operation.response))

    def pause(self, failure: httpx.TransportError | ApiError) -> float:
        """Seconds before the next try; raises when the failure is final."""
        return self._retries.pause(failure, self._operation.repeatable)


class Subscription(Generic[R, T]):
    """One server-sent event stream that outlives its connections by resuming after the last id that was seen.

    That of an operation which is not repeatable ends with its connection.
    """

    def __init__(self, operation: Operation[R, T], config: Config) -> None:
        self._operation = operation
        self._retries = Retries(config)
        self._call = transcode(operation.method, operation.request)
        self._config = config
        self._parser = EventParser()
        self._last_id = ""
        self.finished = False

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request that opens the stream, or opens it again."""
        self._parser = EventParser()
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._last_id:
            headers["last-event-id"] = self._last_id
        return build_request(http, self._call, self._config, headers, self._config.stream_timeout)

    def check(self, response: httpx.Response, content: bytes) -> None:
        """Raises the ApiError in an answer that is not an event stream."""
        raise_for_status(response, content)
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise ApiError(f"{self._config.url}{self._call.path} answered {kind or 'nothing'}; is the URL right?")

    def feed(self, chunk: bytes) -> list[T]:
        """The messages that this chunk completes. Raises ApiError when the platform reports one in the stream."""
        messages = []
        for event in self._parser.feed(chunk):
            if event.name == "end":
                self.finished = True
            elif event.name == "error":
                raise _stream_error(event)
            else:
                messages.append(self._operation.pick(parse(event.data.encode(), self._operation.response)))
                self._last_id = event.id or self._last_id
                self._retries.succeeded()
        return messages

    def pause(self, failure: httpx.TransportError | ApiError | None) -> float:
        """Seconds before connecting again after a failure, or after the connection ended early (None)."""
        repeatable = self._operation.repeatable
        if failure is not None:
            return self._retries.pause(failure, repeatable)
        asked = self._parser.retry_seconds or 0.0
        return max(asked, self._retries.pause(httpx.RemoteProtocolError("the stream ended early"), repeatable))


def build_request(
    http: httpx.Client | httpx.AsyncClient, call: HttpCall, config: Config, headers: dict[str, str], timeout: float
) -> httpx.Request:
    """The request of a call, with token and timeout."""
    if call.body is not None:
        headers = {**headers, "content-type": "application/json"}
    return http.build_request(
        call.verb,
        config.url + call.path,
        params=list(call.query) or None,
        content=call.body,
        headers={**config.headers, **headers},
        timeout=timeout,
    )


def raise_for_status(response: httpx.Response, content: bytes) -> None:
    """Raises the ApiError that an answer with this content describes, if it is one."""
    if response.is_success:
        return
    error = from_response(response.status_code, content)
    after = response.headers.get("retry-after", "")
    error.retry_after = float(after) if after.isdigit() else None
    raise error


def parse(content: bytes, kind: type[R]) -> R:
    """The message in a JSON document; fields of newer platforms are ignored."""
    try:
        return json_format.Parse(content, kind(), ignore_unknown_fields=True)
    except json_format.ParseError as problem:
        raise ApiError(f"the answer is not a {kind.DESCRIPTOR.full_name}: {problem}; is the URL right?") from None


def unreachable(url: str, cause: httpx.TransportError) -> ApiError:
    """The error for a platform that did not answer."""
    text = str(cause) or type(cause).__name__
    if isinstance(cause, _NEVER_SENT):
        return Unavailable(f"cannot reach {url} ({text}); is the platform up, and is the URL right?")
    kind = DeadlineExceeded if isinstance(cause, httpx.TimeoutException) else Unavailable
    return kind(f"{url} did not answer completely ({text})")


def _stream_error(event: ServerEvent) -> ApiError:
    document = json.loads(event.data)
    return from_document(document.get("error", document))
