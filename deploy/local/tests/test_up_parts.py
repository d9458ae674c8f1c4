"""Ports, lock, keys and the process table of `tunesmith up`."""

import asyncio
import json
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import nats as nats_client
import pytest
from typer.testing import CliRunner

from servicekit import subjects
from servicekit.bus import EventBus
from servicekit.errors import Unauthenticated, Unavailable
from servicekit.identity import Role, TokenIssuer, TokenVerifier, generate_private_key, public_key
from tests.support.waiting import eventually
from tunesmith.cli import app
from tunesmith_local import identity, nats, ports
from tunesmith_local.errors import CannotStart
from tunesmith_local.files import last_lines, write_whole
from tunesmith_local.health import http_serving, nats_fault, nats_serving
from tunesmith_local.layout import DataDirectory
from tunesmith_local.lock import held
from tunesmith_local.supervisor import levels
from tunesmith_local.table import SERVICES, Request, programs
from tunesmith_local.up import run, welcome


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    directory = DataDirectory(tmp_path / "data")
    directory.create()
    return directory


def test_ports_stay_the_same(data: DataDirectory) -> None:
    first = ports.assign(["nats", "gateway"], data.ports)
    assert ports.assign(["gateway", "nats"], data.ports) == first
    assert ports.assign(["nats"], data.ports)["nats"] == first["nats"]
    assert len(set(ports.assign(["nats", "gateway", "other"], data.ports).values())) == 3


def test_taken_port_is_replaced(data: DataDirectory) -> None:
    first = ports.assign(["nats", "other"], data.ports)
    with socket.create_server(("127.0.0.1", first["nats"])):
        second = ports.assign(["nats", "other"], data.ports)
    assert second["nats"] != first["nats"]
    assert second["other"] == first["other"]
    data.ports.write_text("{broken")
    assert set(ports.assign(["nats"], data.ports)) == {"nats"}


def test_port_in_use_is_said(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(host="127.0.0.1", port=port, data_dir=data.root, workers=1) == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err
    with pytest.raises(CannotStart, match=r"192\.0\.2\.1"):
        ports.claim("192.0.2.1", 0)


def test_second_platform_on_one_directory_is_refused(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    with held(data.lock, "another `tunesmith up` (process 77)"):
        assert run(host="127.0.0.1", port=0, data_dir=data.root, workers=1) == 1
    message = capsys.readouterr().err
    assert str(data.root) in message and "(process 77)" in message
    with held(data.lock, "me"):
        pass


def test_lock_of_a_dead_process_is_free(data: DataDirectory) -> None:
    code = "import os, sys, pathlib\nfrom tunesmith_local.lock import held\n"
    code += "with held(pathlib.Path(sys.argv[1]), 'it'): os._exit(1)"
    assert subprocess.run([sys.executable, "-c", code, str(data.lock)], check=False).returncode == 1
    with held(data.lock, "me"):
        assert data.lock.read_text() == "me"


def test_directory_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(host="127.0.0.1", port=0, data_dir=tmp_path / "file", workers=1) == 1
    assert "cannot be used" in capsys.readouterr().err
    missing = [tmp_path / "missing"]
    assert run(host="127.0.0.1", port=0, data_dir=tmp_path / "d", workers=1, allowed_roots=missing) == 1
    assert "is not a directory" in capsys.readouterr().err


def test_keys_and_tokens(data: DataDirectory) -> None:
    identity.prepare(data, SERVICES)
    verifier = TokenVerifier(identity.verifying_key(data).read_bytes())
    assert verifier.verify(data.admin_token.read_text().strip()).role is Role.ADMIN
    assert verifier.verify(identity.service_token(data, "trainer").read_text()).role is Role.SERVICE
    secrets = [data.admin_token, *(path for path in data.keys.iterdir() if path.name != "verifying.pem")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert stat.S_IMODE(data.keys.stat().st_mode) == 0o700


def test_administrators_token_is_kept_while_it_is_good(data: DataDirectory) -> None:
    identity.prepare(data, SERVICES)
    token, key = data.admin_token.read_text(), identity.signing_key(data).read_bytes()
    identity.prepare(data, SERVICES)
    assert data.admin_token.read_text() == token
    assert identity.signing_key(data).read_bytes() == key
    data.admin_token.write_text(TokenIssuer(key).issue("admin", Role.ADMIN, timedelta(seconds=-1)))
    identity.prepare(data, SERVICES)
    TokenVerifier(identity.verifying_key(data).read_bytes()).verify(data.admin_token.read_text().strip())


def test_token_command(data: DataDirectory) -> None:
    words = ["token", "--data-dir", str(data.root), "--user", "ann", "--role", "user", "--expires", "2h"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "tunesmith up" in result.stderr
    identity.prepare(data, SERVICES)
    token = CliRunner().invoke(app, words).stdout.strip()
    principal = TokenVerifier(identity.verifying_key(data).read_bytes()).verify(token)
    assert (principal.user, principal.role) == ("ann", Role.USER)
    with pytest.raises(Unauthenticated):
        TokenVerifier(public_key(generate_private_key())).verify(token)


def request(data: DataDirectory, host: str = "127.0.0.1", workers: int = 2) -> Request:
    return Request(data, host, 8000, workers, (Path("/models"),))


def test_table(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNESMITH_OBJECT_STORE_URL", "TUNESMITH_DATABASE_URL", "TUNESMITH_ALLOWED_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    asked = request(data)
    identity.prepare(data, SERVICES)
    assigned = ports.assign(asked.internal, data.ports)
    table = {program.name: program for program in programs(asked, assigned)}
    names = ["nats", "task-service", "eval-service", "export-service", "trainer-1", "trainer-2", "gateway"]
    assert list(table) == names
    assert [program.name for program in levels(list(table.values()))[-1]] == ["gateway"]
    first, second = table["trainer-1"].environment, table["trainer-2"].environment
    assert first["TUNESMITH_WORK_DIR"] != second["TUNESMITH_WORK_DIR"]
    assert first["TUNESMITH_CALIBRATION_FILE"] == second["TUNESMITH_CALIBRATION_FILE"]
    assert first["TUNESMITH_ALLOWED_ROOTS"] == f"{data.root}:/models"
    for name in ("eval-service", "export-service"):
        program, environment = table[name], table[name].environment
        assert environment["TUNESMITH_WORK_DIR"] == str(data.work / name)
        assert environment["TUNESMITH_NATS_USER"] == name
        assert environment["TUNESMITH_TASK_SERVICE_TARGET"] == f"127.0.0.1:{assigned['task-service']}"
        assert set(program.depends_on) == {"nats", "task-service"}
        assert program.stop_seconds > float(environment["TUNESMITH_RELEASE_SECONDS"])
    gateway = table["gateway"].environment
    assert gateway["TUNESMITH_TRAINER_TARGET"] == (
        f"ipv4:127.0.0.1:{assigned['trainer-1']},127.0.0.1:{assigned['trainer-2']}"
    )
    assert "TUNESMITH_NATS_PASSWORD" not in gateway
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "postgresql://u@h/d")
    table = {program.name: program for program in programs(asked, assigned)}
    assert table["task-service"].environment["TUNESMITH_DATABASE_URL"] == "postgresql://u@h/d"


def test_other_machines_may_call_by_name_only_when_they_can_at_all(data: DataDirectory) -> None:
    assigned = ports.assign(request(data).internal, data.ports)
    hosts = {}
    for host in ("127.0.0.1", "0.0.0.0"):
        environment = programs(request(data, host), assigned)[-1].environment
        hosts[host] = json.loads(environment["TUNESMITH_ALLOWED_HOSTS"])
    assert hosts["127.0.0.1"] == []
    assert "127.0.0.1" in hosts["0.0.0.0"] and socket.gethostname() in hosts["0.0.0.0"]


def test_welcome_warns_beyond_loopback(data: DataDirectory) -> None:
    identity.prepare(data, SERVICES)
    assert "Warning" not in welcome(request(data))
    assert "Warning" in welcome(request(data, "0.0.0.0"))
    assert "http://[::1]:8000" in welcome(request(data, "::"))
    assert str(data.admin_token) in welcome(request(data))


@dataclass
class Broker:
    """A running nats-server with the platform's accounts."""

    url: str
    accounts: dict[str, nats.Account]
    health_url: str
    pid: int

    @asynccontextmanager
    async def bus(self, name: str) -> AsyncIterator[EventBus]:
        account = self.accounts[name]
        bus = await EventBus.connect(self.url, name=name, user=account.user, password=account.password)
        try:
            yield bus
        finally:
            await bus.close()

    async def assert_refused(self, name: str, *, publish: Sequence[str], subscribe: Sequence[str]) -> None:
        """Waits until the server has refused a service every one of the subjects."""
        errors: list[str] = []

        async def note(error: Exception) -> None:
            errors.append(str(error))

        account = self.accounts[name]
        client = await nats_client.connect(self.url, user=account.user, password=account.password, error_cb=note)
        for subject in subscribe:
            await client.subscribe(subject)
        for subject in publish:
            await client.publish(subject, b"")
        await eventually(lambda: len(errors) == len(publish) + len(subscribe), what="a refusal of each subject")
        await client.close()


@pytest.fixture
async def broker(data: DataDirectory) -> AsyncIterator[Broker]:
    port, monitor = ports.assign(["nats", "nats-monitor"], data.ports).values()
    prepared = nats.prepare(data, port, monitor)
    process = await asyncio.create_subprocess_exec(*prepared.command, stderr=asyncio.subprocess.DEVNULL)
    await eventually(nats_serving(port))
    yield Broker(f"nats://127.0.0.1:{port}", prepared.accounts, prepared.health_url, process.pid)
    process.kill()
    await process.wait()


WORKERS = [("trainer", "finetune"), ("eval-service", "evaluate"), ("export-service", "export")]


@pytest.mark.parametrize(("name", "kind"), WORKERS)
async def test_each_service_may_do_its_own_work_on_the_broker(broker: Broker, name: str, kind: str) -> None:
    async with broker.bus("task-service") as task, broker.bus(name) as worker:
        await task.ensure_streams()
        await task.publish(f"work.{kind}.default.t1", b"item")
        work = worker.consumer("WORK", f"{kind}-default", f"work.{kind}.default.>")
        (message,) = await work.fetch(1, 5)
        await message.in_progress()
        await message.ack_sync()
        await worker.publish(f"deadletter.work.{kind}.default.t1", b"not an item")
        await worker.publish("fact.t1", b"fact")
        await worker.publish("log.t1", b"line")
        facts = task.consumer("FACTS", "task-service", "fact.>")
        assert [fact.data for fact in await facts.fetch(1, 5)] == [b"fact"]
        heard: list[str] = []

        async def listen(subject: str, data: bytes) -> None:
            heard.append(subject)

        await worker.subscribe(subjects.state_changes_of("t1"), listen)
        await worker.publish("log.t1", b"answered after the subscription was taken")
        await task.publish("tunesmith.v1.task.stopping.t1", b"")
        await eventually(lambda: heard == ["tunesmith.v1.task.stopping.t1"])


async def test_services_may_not_speak_for_each_other(broker: Broker) -> None:
    forbidden = ["tunesmith.v1.task.completed.t1", "work.finetune.default.t1", "$JS.API.STREAM.PURGE.EVENTS"]
    forbidden += ["$JS.API.STREAM.DELETE.WORK", "$JS.API.STREAM.UPDATE.WORK", "$JS.API.CONSUMER.CREATE.FACTS.x.fact.t1"]
    for name, kind in WORKERS:
        others = [other for _, other in WORKERS if other != kind]
        foreign = [f"$JS.API.CONSUMER.MSG.NEXT.WORK.{other}-default" for other in others]
        foreign += [f"$JS.ACK.WORK.{other}-default.1.1.1.1.0" for other in others]
        foreign += [f"$JS.API.CONSUMER.CREATE.WORK.{kind}-default.work.{other}.default.>" for other in others]
        foreign += [f"$JS.API.CONSUMER.DURABLE.CREATE.WORK.{kind}-default", "deadletter.work.else.default.t1"]
        subscribe = ["fact.>", ">", "tunesmith.v1.quota.>"]
        await broker.assert_refused(name, publish=forbidden + foreign, subscribe=subscribe)
    await broker.assert_refused("task-service", publish=["fact.t1", "log.t1"], subscribe=["log.t1"])


@pytest.mark.parametrize("login", [{"user": "trainer", "pass": "wrong"}, {"user": "nobody", "pass": "x"}, {}])
async def test_broker_knows_its_users_alone(broker: Broker, login: dict[str, str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(broker.url).port)
    await reader.readline()
    writer.write(b"CONNECT " + json.dumps({"verbose": False, **login}).encode() + b"\r\nPING\r\n")
    assert b"Authorization Violation" in await reader.readline()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def test_a_broker_that_cannot_write_has_a_fault(broker: Broker) -> None:
    fault = nats_fault(broker.health_url)
    async with broker.bus("task-service") as bus:
        await bus.ensure_streams()
        await bus.publish("work.finetune.default.t1", b"item")
        assert await fault() == ""
        unlimited = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
        with pytest.raises(Unavailable):
            await bus.publish("work.finetune.default.t2", b"item")
        assert "write error" in await fault()
    without_secret = urlsplit(broker.health_url)._replace(path="/healthz").geturl()
    assert not await http_serving(without_secret)()


async def test_nobody_serves_at_a_free_port(data: DataDirectory) -> None:
    port = ports.assign(["x"], data.ports)["x"]
    assert not await nats_serving(port)()
    assert not await http_serving(f"http://127.0.0.1:{port}/healthz")()


def test_files_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "one")
    write_whole(path, "two\nthree")
    assert path.read_text() == "two\nthree"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert last_lines(path, 1) == ["three"]
    assert last_lines(tmp_path / "missing", 1) == []
