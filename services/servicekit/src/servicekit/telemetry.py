"""Traces and metrics. Nothing is recorded and no SDK is loaded until an OTLP endpoint is configured.

Instruments come from the OpenTelemetry API (opentelemetry.trace, opentelemetry.metrics), which costs next to nothing
while telemetry is off. Sampling follows the standard OTEL_TRACES_SAMPLER variables.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

logger = logging.getLogger(__name__)

EXPORT_TIMEOUT_SECONDS = 5.0
METRIC_INTERVAL_SECONDS = 15.0
SHUTDOWN_SECONDS = 3.0
# What the semantic conventions advise for durations of calls, in seconds.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("tunesmith")
_running = False

rpc_server_duration = metrics.get_meter("tunesmith").create_histogram(
    "rpc.server.call.duration",
    unit="s",
    description="Duration of calls that this service answered.",
    explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
)
rpc_client_duration = metrics.get_meter("tunesmith").create_histogram(
    "rpc.client.call.duration",
    unit="s",
    description="Duration of calls that this service made.",
    explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
)


def enabled() -> bool:
    """Whether telemetry is recorded."""
    return _running


def tracer() -> trace.Tracer:
    """The tracer of the platform."""
    return _tracer


def configure(service_name: str, endpoint: str | None, attributes: Mapping[str, AttributeValue] | None = None) -> None:
    """Starts to send traces and metrics to an OTLP endpoint over gRPC; does nothing without one.

    http://host:port is sent in the clear, https://host:port over TLS. Works once in the life of a process, and before
    servers and channels are made, which take their interceptors at that time.
    """
    global _running  # noqa: PLW0603  the SDK has one provider for each process, too
    if not endpoint or _running:
        return
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    insecure = not endpoint.startswith("https://")
    resource = Resource.create(
        {
            "service.name": service_name,
            "service.namespace": "tunesmith",
            "service.version": version("tunesmith-servicekit"),
            **(attributes or {}),
        }
    )
    spans = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_SECONDS)
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    traces.add_span_processor(BatchSpanProcessor(spans))
    trace.set_tracer_provider(traces)
    points = OTLPMetricExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_SECONDS)
    reader = PeriodicExportingMetricReader(points, export_interval_millis=METRIC_INTERVAL_SECONDS * 1000)
    metrics.set_meter_provider(MeterProvider([reader], resource=resource, shutdown_on_exit=False))
    _running = True
    logger.info("telemetry goes to %s", endpoint)


def shutdown(timeout: float = SHUTDOWN_SECONDS) -> None:
    """Sends what was recorded, for at most timeout seconds; what a dead endpoint does not take is lost."""
    global _running  # noqa: PLW0603
    if not _running:
        return
    _running = False
    providers = (trace.get_tracer_provider(), metrics.get_meter_provider())
    endings = [ending for provider in providers if (ending := getattr(provider, "shutdown", None))]
    threads = [threading.Thread(target=ending, daemon=True) for ending in endings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)


def inject(headers: MutableMapping[str, str], context: Context | None = None) -> None:
    """Adds the current trace to the headers of a message; nothing while telemetry is off."""
    if _running:
        _propagator.inject(headers, context)


def extract(headers: Mapping[str, str] | None) -> Context | None:
    """The trace that a message's headers carry, as parent of a span; None without one or while telemetry is off."""
    if not _running or not headers or "traceparent" not in headers:
        return None
    return _propagator.extract(headers)


@contextmanager
def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Context | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """A span around a block, current within it; an exception is recorded in it. Costs little while telemetry is off."""
    if not _running:
        yield trace.INVALID_SPAN
        return
    with _tracer.start_as_current_span(name, context=parent, kind=kind, attributes=attributes) as opened:
        yield opened
