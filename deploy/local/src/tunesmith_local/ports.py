"""Ports of the processes: chosen once, kept in a file, changed only when somebody else took one."""

import json
import random
import socket
from collections.abc import Iterable
from pathlib import Path

from tunesmith_local.errors import CannotStart
from tunesmith_local.files import write_whole

LOOPBACK = "127.0.0.1"
# Below the range from which the kernel takes ports for outgoing connections.
FIRST, LAST = 10_000, 14_999
TRIES = 1000


def assign(names: Iterable[str], path: Path) -> dict[str, int]:
    """A free loopback port for each name, the same as last time where that is possible."""
    known = _read(path)
    ports: dict[str, int] = {}
    for name in names:
        port = known.get(name)
        taken = {*ports.values(), *(other for key, other in known.items() if key != name)}
        if port is None or port in ports.values() or not is_free(LOOPBACK, port):
            port = _find(taken)
        ports[name] = port
    write_whole(path, json.dumps({**known, **ports}, indent=2))
    return ports


def claim(host: str, port: int) -> int:
    """The port that a server can listen on, a free one for 0. Raises CannotStart that says what is in the way."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        text = error.strerror or str(error)
        raise CannotStart(f"cannot listen on {host} port {port}: {text}; choose with --host and --port") from None


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on a port now."""
    try:
        with socket.create_server((host, port)):
            return True
    except OSError:
        return False


def _find(taken: set[int]) -> int:
    for _ in range(TRIES):
        port = random.randint(FIRST, LAST)
        if port not in taken and is_free(LOOPBACK, port):
            return port
    raise CannotStart(f"no free port between {FIRST} and {LAST} on {LOOPBACK}")


def _read(path: Path) -> dict[str, int]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {name: port for name, port in document.items() if isinstance(port, int)}
