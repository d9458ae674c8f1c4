"""The gateway's native GET against Envoy's gRPC-JSON transcoder in front of the same service; a page of 100,000 tasks.

    python -m benchmarks.http_api

Needs wrk (https://github.com/wg/wrk).
"""

import re
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from google.protobuf import descriptor_pb2, descriptor_pool

from benchmarks.report import percentile, print_table, spread, verdict
from benchmarks.seed_tasks import seed_tasks
from benchmarks.workload import TrainingWorkload
from tests.support.platform import Platform
from tests.support.ports import free_port
from tests.support.waiting import wait_until
from tunesmith.task.v1 import task_service_pb2

SECONDS, CONNECTIONS, ROUNDS = 5, 16, 5
TASKS, PAGE, PAGES = 100_000, 50, 40

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: transcoder
          codec_type: AUTO
          route_config:
            virtual_hosts:
            - name: task_service
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route: {{cluster: task_service, timeout: 30s}}
          http_filters:
          - name: envoy.filters.http.grpc_json_transcoder
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder
              proto_descriptor: {descriptors}
              services: [tunesmith.task.v1.TaskService]
              print_options: {{preserve_proto_field_names: true}}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: task_service
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: task_service
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {backend}}}}}}}
"""


def descriptor_set() -> bytes:
    """The task service's contract with everything it imports, in the order that protoc would write."""
    files = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        file = descriptor_pool.Default().FindFileByName(name)
        for dependency in file.dependencies:
            add(dependency.name)
        file.CopyToProto(files.file.add())

    add(task_service_pb2.DESCRIPTOR.name)
    return files.SerializeToString()


@contextmanager
def envoy(directory: Path, backend: int) -> Iterator[str]:
    """Envoy in front of the task service; its address."""
    port = free_port()
    descriptors = directory / "task_service.binpb"
    descriptors.write_bytes(descriptor_set())
    configuration = directory / "envoy.yaml"
    configuration.write_text(ENVOY.format(port=port, descriptors=descriptors, backend=backend))
    binary = Path(sysconfig.get_path("scripts")) / "envoy"
    command = [str(binary), "-c", str(configuration)]
    command += ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    with subprocess.Popen(command) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(url: str, token: str) -> bool:
    try:
        return httpx.get(url, headers={"Authorization": f"Bearer {token}"}, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def requests_per_second(url: str, token: str) -> float:
    """What wrk reaches; an answer other than 200 is an error."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-H", f"Authorization: Bearer {token}", url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output:
        raise RuntimeError(output)
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found is not None, output
    return float(found[1])


def page_times(platform: Platform) -> list[float]:
    """Milliseconds for pages of 50 tasks, one after the other through the list."""
    times, token = [], ""
    with httpx.Client(headers={"Authorization": f"Bearer {platform.token()}"}, trust_env=False) as http:
        for _ in range(PAGES):
            started = time.perf_counter()
            response = http.get(f"{platform.url}/v1/tasks", params={"page_size": PAGE, "page_token": token})
            times.append((time.perf_counter() - started) * 1000)
            page = response.raise_for_status().json()
            assert len(page["tasks"]) == PAGE
            token = page["next_page_token"]
    return times


def main() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Platform(directory / "data") as platform:
            workload = TrainingWorkload.create(platform.data_dir / "datasets" / "bench")
            with platform.client() as client:
                task = client.tasks.create(workload.request("http", steps=2))
                client.tasks.wait(task.id)
            token, path = platform.token(), f"/v1/tasks/{task.id}"
            with envoy(directory, platform.ports()["task-service"]) as peer:
                wait_until(lambda: answers(peer + path, token), 20, "Envoy to answer")
                for _ in range(ROUNDS):
                    ours.append(requests_per_second(platform.url + path, token))
                    theirs.append(requests_per_second(peer + path, token))
            seed_tasks(platform.data_dir, task.id, TASKS)
            pages = page_times(platform)
    ratio = statistics.median(ours) / statistics.median(theirs)
    print_table(
        f"GET of a task, {CONNECTIONS} connections (requests per second)",
        ["", "runs", "median (least to greatest)", "figure"],
        [
            ["Tunesmith's gateway", len(ours), spread(ours), ""],
            ["Envoy's transcoder", len(theirs), spread(theirs), ""],
            ["ratio", "", f"{ratio:.3f}", verdict(ratio, 0.85, at_most=False)],
        ],
    )
    median = statistics.median(pages)
    print_table(
        f"A page of {PAGE} out of {TASKS:,} tasks (milliseconds)",
        ["", "pages", "median", "p99", "figure"],
        [
            [
                "through the gateway",
                len(pages),
                f"{median:.1f}",
                f"{percentile(pages, 0.99):.1f}",
                verdict(percentile(pages, 0.99), 50, at_most=True),
            ]
        ],
    )


if __name__ == "__main__":
    main()
