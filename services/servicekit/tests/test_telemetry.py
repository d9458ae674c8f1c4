"""Telemetry: free while it is off; complete, and by the conventions' names, while it is on."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from servicekit import grpc_telemetry, telemetry

PROGRAM = Path(__file__).with_name("telemetry_program.py")


def values(attributes: Any) -> dict[str, Any]:
    items: list[KeyValue] = list(attributes)
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in items}


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP endpoint that keeps what it gets."""

    port: int = 0
    resources: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    histograms: dict[str, list[HistogramDataPoint]] = field(default_factory=dict)

    async def Export(self, request: Any, context: Any) -> Any:
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for resource in request.resource_spans:
                self.resources.append(values(resource.resource.attributes))
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        for resource in request.resource_metrics:
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                self.histograms.setdefault(metric.name, []).extend(metric.histogram.data_points)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def of(self, name: str, kind: int) -> list[Span]:
        return [span for span in self.spans if span.name == name and span.kind == kind]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield collector
    await server.stop(None)


async def run_program(endpoint: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), endpoint, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, trouble = await process.communicate()
    assert process.returncode == 0, trouble.decode()
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


async def test_a_call_through_two_services_and_the_bus_is_one_trace(collector: Collector) -> None:
    told = await run_program(f"http://127.0.0.1:{collector.port}")
    get, watch, missing = ("tunesmith.task.v1.TaskService/" + name for name in ("GetTask", "WatchTask", "DeleteTask"))
    spans = {
        "root": next(span for span in collector.spans if span.name == "request"),
        "client": collector.of(get, Span.SPAN_KIND_CLIENT)[0],
        "server": collector.of(get, Span.SPAN_KIND_SERVER)[0],
        "inner": next(span for span in collector.spans if span.name == "inside the servicer"),
        "message": next(span for span in collector.spans if span.name == "message"),
    }
    assert len({span.trace_id for span in spans.values()}) == 1
    assert spans["client"].parent_span_id == spans["root"].span_id
    assert spans["server"].parent_span_id == spans["client"].span_id
    assert spans["inner"].parent_span_id == spans["server"].span_id
    assert spans["message"].parent_span_id == spans["server"].span_id
    assert spans["message"].kind == Span.SPAN_KIND_CONSUMER
    assert told["traceparent"].split("-")[1] == spans["root"].trace_id.hex()
    expected = {"rpc.system.name": "grpc", "rpc.method": get, "rpc.response.status_code": "OK"}
    assert values(spans["server"].attributes) == values(spans["client"].attributes) == expected
    assert len(collector.of(watch, Span.SPAN_KIND_SERVER)) == len(collector.of(watch, Span.SPAN_KIND_CLIENT)) == 1
    assert not [span for span in collector.spans if "Health" in span.name]
    assert {item["service.name"] for item in collector.resources} == {"probe"}
    # A missing task is the caller's trouble, not the server's.
    (client,), (server,) = (collector.of(missing, kind) for kind in (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER))
    assert values(client.attributes)["rpc.response.status_code"] == "NOT_FOUND"
    assert values(server.attributes)["rpc.response.status_code"] == "NOT_FOUND"
    assert (client.status.code, server.status.code) == (2, 0)


async def test_durations_are_in_seconds(collector: Collector) -> None:
    await run_program(f"http://127.0.0.1:{collector.port}")
    for name in ("rpc.server.call.duration", "rpc.client.call.duration"):
        points = {
            (labels["rpc.method"].rpartition("/")[2], labels["rpc.response.status_code"]): point
            for point in collector.histograms[name]
            if (labels := values(point.attributes))
        }
        assert points.keys() == {
            ("GetTask", "OK"),
            ("WatchTask", "OK"),
            ("DeleteTask", "NOT_FOUND"),
            ("StopTask", "INTERNAL"),
        }
        point = points["GetTask", "OK"]
        assert tuple(point.explicit_bounds) == telemetry.DURATION_BUCKETS
        assert 0 < point.sum < 5
        assert values(points["StopTask", "INTERNAL"].attributes)["error.type"] == "INTERNAL"


async def test_a_dead_endpoint_delays_nobody() -> None:
    told = await run_program("http://127.0.0.1:1")
    assert told["calls_seconds"] < 3
    assert told["shutdown_seconds"] < telemetry.SHUTDOWN_SECONDS + 2


def test_nothing_is_loaded_while_it_is_off() -> None:
    program = """
import sys
from servicekit import grpc_client, grpc_server, grpc_telemetry, telemetry
telemetry.configure("probe", None)
headers = {}
with telemetry.span("x") as span:
    span.set_attribute("a", 1)
    telemetry.inject(headers)
telemetry.rpc_server_duration.record(1.0)
telemetry.shutdown()
assert headers == {} and telemetry.extract({"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}) is None
assert not telemetry.enabled()
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_interceptors_while_it_is_off() -> None:
    assert not telemetry.enabled()
    assert grpc_telemetry.server_interceptors() == []
    assert grpc_telemetry.client_interceptors() == []
