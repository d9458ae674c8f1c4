"""Ports that no other test process takes, also between a server's death and its restart."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

# Below the range from which the kernel takes ports for outgoing connections.
FIRST, LAST = 15_000, 31_999

_leases: list[int] = []


def free_port() -> int:
    """A port of the loopback address that is free and, until this process ends, is given to nobody else."""
    directory = Path(tempfile.gettempdir()) / f"tunesmith-test-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    for _ in range(1000):
        port = random.randint(FIRST, LAST)
        lease = os.open(directory / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _locked(lease) and _unused(port):
            _leases.append(lease)
            return port
        os.close(lease)
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")


def _locked(lease: int) -> bool:
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unused(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def accepts(port: int) -> bool:
    """Whether something listens on a port of the loopback address."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
