"""The process table: what `tunesmith up` runs, with which settings, and what needs what."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tunesmith_local import identity, nats
from tunesmith_local.health import grpc_serving, http_serving, nats_fault, nats_serving
from tunesmith_local.layout import DataDirectory
from tunesmith_local.process import Program

LOOPBACK = "127.0.0.1"
NATS, NATS_MONITOR = "nats", "nats-monitor"
TASK, EVAL, EXPORT, GATEWAY = "task-service", "eval-service", "export-service", "gateway"
SERVICES = (TASK, "trainer", EVAL, EXPORT)
RELEASE_SECONDS = 20.0
EXPORTS_AT_ONCE = "2"
WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Request:
    """What `tunesmith up` was asked for; port is one that is free."""

    data: DataDirectory
    host: str
    port: int
    workers: int
    allowed_roots: tuple[Path, ...] = ()

    @property
    def trainers(self) -> list[str]:
        """Names of the workers."""
        return [f"trainer-{number}" for number in range(1, self.workers + 1)]

    @property
    def internal(self) -> list[str]:
        """Names of what needs a loopback port."""
        return [NATS, NATS_MONITOR, TASK, EVAL, EXPORT, *self.trainers]

    @property
    def url(self) -> str:
        """Where people find the gateway from this machine."""
        host = LOOPBACK if self.host == "0.0.0.0" else "::1" if self.host == "::" else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def programs(request: Request, ports: Mapping[str, int]) -> list[Program]:
    """Every program. Environment variables that choose another database or object store stay in force."""
    broker = nats.prepare(request.data, ports[NATS], ports[NATS_MONITOR])
    accounts = broker.accounts
    fault = nats_fault(broker.health_url)
    return [
        Program(NATS, broker.command, nats_serving(ports[NATS]), port=ports[NATS], fault=fault),
        _task_service(request, ports, accounts[TASK]),
        _worker(request, ports, EVAL, "eval_service", EVAL, accounts[EVAL]),
        _export(request, ports, accounts[EXPORT]),
        *(_trainer(request, ports, name, accounts["trainer"]) for name in request.trainers),
        _gateway(request, ports),
    ]


def _service(
    request: Request, ports: Mapping[str, int], name: str, module: str, role: str, *needs: str, **settings: str
) -> Program:
    data = request.data
    common = {
        "host": LOOPBACK,
        "port": str(ports[name]),
        "public_key_file": str(identity.verifying_key(data)),
        "service_token_file": str(identity.service_token(data, role)),
        "object_store_url": os.environ.get("TUNESMITH_OBJECT_STORE_URL", data.objects.as_uri()),
    }
    return Program(
        name,
        (sys.executable, "-m", module),
        grpc_serving(ports[name]),
        _environment({**common, **settings}),
        ports[name],
        needs,
    )


def _nats_settings(ports: Mapping[str, int], account: nats.Account) -> dict[str, str]:
    url = f"nats://{LOOPBACK}:{ports[NATS]}"
    return {"nats_url": url, "nats_user": account.user, "nats_password": account.password}


def _task_service(request: Request, ports: Mapping[str, int], account: nats.Account) -> Program:
    database = os.environ.get("TUNESMITH_DATABASE_URL", f"sqlite:///{request.data.database}")
    settings = {
        **_nats_settings(ports, account),
        "database_url": database,
        "trainer_target": _trainers(request, ports),
        "eval_service_target": f"{LOOPBACK}:{ports[EVAL]}",
        "export_service_target": f"{LOOPBACK}:{ports[EXPORT]}",
        "upload_dir": str(request.data.work / "uploads"),
    }
    return _service(request, ports, TASK, "task_service", TASK, NATS, **settings)


def _trainer(request: Request, ports: Mapping[str, int], name: str, account: nats.Account) -> Program:
    settings = {
        "calibration_file": str(request.data.work / "calibration.json"),
        "cpu_fallback": os.environ.get("TUNESMITH_CPU_FALLBACK", "true"),
    }
    return _worker(request, ports, name, "trainer_service", "trainer", account, **settings)


def _export(request: Request, ports: Mapping[str, int], account: nats.Account) -> Program:
    return _worker(request, ports, EXPORT, "export_service", EXPORT, account, slots=EXPORTS_AT_ONCE)


def _worker(
    request: Request,
    ports: Mapping[str, int],
    name: str,
    module: str,
    role: str,
    account: nats.Account,
    **settings: str,
) -> Program:
    """A service that works on tasks."""
    data = request.data
    release = float(os.environ.get("TUNESMITH_RELEASE_SECONDS", RELEASE_SECONDS))
    common = {
        **_nats_settings(ports, account),
        "task_service_target": f"{LOOPBACK}:{ports[TASK]}",
        "allowed_roots": os.pathsep.join(str(root) for root in (data.root, *request.allowed_roots)),
        "private_paths": os.pathsep.join(map(str, data.private)),
        "output_root": str(data.outputs),
        "work_dir": str(data.work / name),
        "release_seconds": str(release),
    }
    program = _service(request, ports, name, module, role, NATS, TASK, **common, **settings)
    return replace(program, stop_seconds=release + 10)


def _gateway(request: Request, ports: Mapping[str, int]) -> Program:
    settings = {
        "host": request.host,
        "port": str(request.port),
        "public_key_file": str(identity.verifying_key(request.data)),
        "task_target": f"{LOOPBACK}:{ports[TASK]}",
        "trainer_target": _trainers(request, ports),
        "eval_target": f"{LOOPBACK}:{ports[EVAL]}",
        "export_target": f"{LOOPBACK}:{ports[EXPORT]}",
        "upload_dir": str(request.data.work / "forms"),
        "allowed_hosts": os.environ.get("TUNESMITH_ALLOWED_HOSTS") or json.dumps(_own_names(request.host)),
    }
    return Program(
        GATEWAY,
        (sys.executable, "-m", "gateway"),
        http_serving(f"{request.url}/healthz"),
        _environment(settings),
        request.port,
        (TASK, EVAL, EXPORT, *request.trainers),
    )


def _trainers(request: Request, ports: Mapping[str, int]) -> str:
    return "ipv4:" + ",".join(f"{LOOPBACK}:{ports[name]}" for name in request.trainers)


def _own_names(host: str) -> list[str]:
    """Names and addresses that this machine is called by, when it listens on all of them."""
    if host not in WILDCARDS:
        return []
    addresses = [item for items in psutil.net_if_addrs().values() for item in items]
    found = [item.address.partition("%")[0] for item in addresses if item.family in (socket.AF_INET, socket.AF_INET6)]
    return sorted({socket.gethostname(), *(f"[{name}]" if ":" in name else name for name in found)})


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"TUNESMITH_{name.upper()}": value for name, value in settings.items()}
