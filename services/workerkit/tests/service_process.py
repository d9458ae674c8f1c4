"""A service with workers as a process of its own, as it is deployed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import accepts, free_port
from tests.support.process import ServerProcess


@contextmanager
def service_process(module: str, root: Path, **settings: str) -> Iterator[tuple[ServerProcess, int]]:
    """`python -m module` with directories below root, once it listens, and its port; settings without their prefix."""
    port = free_port()
    given = {
        "port": str(port),
        "object_store_url": f"file://{root}/objects",
        "allowed_roots": str(root / "data"),
        "output_root": str(root / "outputs"),
        "work_dir": str(root / "work"),
        "drain_seconds": "1",
        **settings,
    }
    environment = {f"TUNESMITH_{name.upper()}": value for name, value in given.items()}
    command = [sys.executable, "-m", module]
    process = ServerProcess(command, root / "service.log", ready=lambda: accepts(port), environment=environment)
    with process:
        yield process, port
