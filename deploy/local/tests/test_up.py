"""`tunesmith up` with the real services: one start, then everything that may happen to it."""

import json
import os
import signal
import stat
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.waiting import wait_until
from tunesmith.client import Client
from tunesmith_local.ports import claim

pytestmark = pytest.mark.timeout(240)

COMMAND = str(Path(sysconfig.get_path("scripts")) / "tunesmith")
NAMES = ["nats", "task-service", "eval-service", "export-service", "trainer-1", "gateway"]
START_SECONDS = 120.0


class Up:
    """A running `tunesmith up`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port = claim("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = data_dir.with_suffix(".out")
        command = [COMMAND, "up", "--port", str(self.port), "--data-dir", str(data_dir)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def pids(self) -> dict[str, int]:
        entries = json.loads((self.data_dir / "run" / "processes.json").read_text())["processes"]
        return {entry["name"]: entry["pid"] for entry in entries}

    def said(self, words: str) -> bool:
        return words in self.output.read_text()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "data")
    try:
        wait_until(running.healthy, START_SECONDS, "the platform to serve")
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def test_platform_from_start_to_stop(up: Up, tmp_path: Path) -> None:
    assert_serves_with_what_it_left_in_its_directory(up)
    assert_second_one_on_its_directory_is_refused(up)
    assert_second_one_on_its_port_is_refused(up, tmp_path / "other")
    for name in ("gateway", "task-service", "nats"):
        assert_death_is_mended(up, name)
    assert_interrupt_stops_everything(up)


def assert_serves_with_what_it_left_in_its_directory(up: Up) -> None:
    assert list(up.pids()) == NAMES
    assert all(psutil.pid_exists(pid) for pid in up.pids().values())
    wait_until(lambda: up.said("everything serves"))
    assert (up.data_dir / "run" / "url").read_text().strip() == up.url
    assert stat.S_IMODE((up.data_dir / "admin.token").stat().st_mode) == 0o600
    with Client(data_dir=up.data_dir) as client:
        assert client.config.url == up.url
        assert list(client.tasks.list()) == []
        assert client.devices()
    token = subprocess.run(
        [COMMAND, "token", "--data-dir", str(up.data_dir), "--user", "ann"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    with Client(up.url, token.stdout.strip()) as client:
        assert list(client.tasks.list()) == []


def assert_second_one_on_its_directory_is_refused(up: Up) -> None:
    command = [COMMAND, "up", "--port", "0", "--data-dir", str(up.data_dir)]
    second = subprocess.run(command, stderr=subprocess.PIPE, check=False, text=True)
    assert second.returncode == 1
    assert f"(process {up.process.pid})" in second.stderr


def assert_second_one_on_its_port_is_refused(up: Up, data_dir: Path) -> None:
    command = [COMMAND, "up", "--port", str(up.port), "--data-dir", str(data_dir)]
    second = subprocess.run(command, stderr=subprocess.PIPE, check=False, text=True)
    assert second.returncode == 1
    assert f"port {up.port}" in second.stderr


def assert_death_is_mended(up: Up, name: str) -> None:
    pid = up.pids()[name]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: up.said(f"{name} serves again"), 60, f"{name} to serve again")
    assert up.said(f"{name} was killed by SIGKILL; starting it again")
    assert up.pids()[name] not in (0, pid)
    wait_until(up.healthy, 60, "everything to be healthy again")
    with Client(data_dir=up.data_dir) as client:
        assert list(client.tasks.list()) == []


def assert_interrupt_stops_everything(up: Up) -> None:
    processes = [psutil.Process(up.process.pid), *psutil.Process(up.process.pid).children(recursive=True)]
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0, up.output.read_text()
    assert up.output.read_text().endswith("stopped\n")
    assert not up.said("was killed\n")
    assert [process for process in processes[1:] if process.is_running()] == []
    assert not (up.data_dir / "run" / "url").exists()
    assert set(up.pids().values()) == {0}
