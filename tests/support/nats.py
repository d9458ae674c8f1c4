"""A real nats-server with JetStream."""

import json
import socket
import sysconfig
from pathlib import Path
from typing import Self

from tests.support.ports import free_port
from tests.support.process import ServerProcess

CONFIGURATION = """
listen: "127.0.0.1:{port}"
jetstream {{
  store_dir: {store}
  sync_interval: always
}}
{extra}
"""


class NatsServer:
    """Keeps its port and its store over a kill and a restart."""

    def __init__(self, directory: Path, extra: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.store = directory / "store"
        configuration = directory / "nats.conf"
        configuration.write_text(CONFIGURATION.format(port=self.port, store=json.dumps(str(self.store)), extra=extra))
        binary = Path(sysconfig.get_path("scripts")) / "nats-server"
        self.process = ServerProcess([binary, "-c", configuration], directory / "nats.log", ready=self._ready)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()

    def restart(self) -> None:
        """Starts it again on its port and store, after a kill of its own where it still runs."""
        self.process.kill()
        self.process.start()

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4096).startswith(b"INFO ")
        except OSError:
            return False
