"""`tunesmith up` as a child of the demonstration."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tunesmith_local.errors import CannotStart
from tunesmith_local.files import last_lines
from tunesmith_local.layout import DataDirectory
from tunesmith_local.process import dying_with_us

STOP_SECONDS = 60.0
POLL_SECONDS = 0.1


class Platform:
    """Starts the platform when entered, stops it when left; what it prints goes to a log."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data = DataDirectory(data_dir)
        self.log = self.data.log("up")
        self._port = port
        self._child: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.data.create()
        self.data.url.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tunesmith.cli", "up"]
        command += ["--port", str(self._port), "--data-dir", str(self.data.root)]
        with self.log.open("wb") as output:
            self._child = subprocess.Popen(
                dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self) -> str:
        """Returns the address when everything serves. Raises CannotStart with what the platform said."""
        while not self.data.url.exists():
            if self._child.poll() is not None:
                said = "\n".join(last_lines(self.log, 30))
                raise CannotStart(f"the platform did not start:\n{said}")
            time.sleep(POLL_SECONDS)
        return self.data.url.read_text().strip()

    def token(self) -> str:
        """The administrator's token."""
        return self.data.admin_token.read_text().strip()

    def stop(self) -> None:
        """Stops the platform in order; kills it when that takes too long."""
        if self._child.poll() is not None:
            return
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
