"""A span and a duration for each HTTP request, while telemetry is on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from gateway.http import Request
from servicekit import telemetry

UNOBSERVED = ("/healthz",)

http_server_duration = metrics.get_meter("tunesmith").create_histogram(
    "http.server.request.duration",
    unit="s",
    description="Duration of HTTP requests.",
    explicit_bucket_boundaries_advisory=telemetry.DURATION_BUCKETS,
)


@contextmanager
def observed(request: Request) -> Iterator[None]:
    """Observes a request; its status and route are those that it has at the end."""
    if not telemetry.enabled() or request.scope["path"] in UNOBSERVED:
        yield
        return
    parent = telemetry.extract({name: request.header(name.encode()) for name in ("traceparent", "tracestate")})
    started = time.perf_counter()
    with telemetry.span(request.method, kind=SpanKind.SERVER, parent=parent) as span:
        try:
            yield
        finally:
            _record(request, span, time.perf_counter() - started)


def _record(request: Request, span: trace.Span, seconds: float) -> None:
    attributes: dict[str, str | int] = {
        "http.request.method": request.method,
        "http.response.status_code": request.status,
        "http.route": request.route,
    }
    if request.status >= 500:
        attributes["error.type"] = str(request.status)
        span.set_status(Status(StatusCode.ERROR))
    span.update_name(f"{request.method} {request.route}".rstrip())
    span.set_attributes(attributes)
    http_server_duration.record(seconds, attributes)
