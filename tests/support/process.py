"""A server process that does not outlive the tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.waiting import wait_until

LAUNCHER = Path(__file__).with_name("launcher.py")
START_SECONDS = 50.0  # a busy machine takes long to start one; a test has 60


class ServerProcess:
    """Starts a command whose output goes to a file, and can kill and start it again.

    The kernel kills it when the thread that started it ends, so that an interrupted test run leaves nothing behind.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        user: int | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self._command = [str(item) for item in command]
        self._log = log
        self._ready = ready
        self._environment = {**os.environ, **(environment or {})}
        self._user = user
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it and waits until it is ready. RuntimeError with the end of its log when it ends instead."""
        user = "-" if self._user is None else str(self._user)
        command = [sys.executable, "-I", "-S", str(LAUNCHER), str(int(self._death_signal)), str(os.getpid()), user]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        try:
            wait_until(self._started, START_SECONDS, f"{self._command[0]} to be ready")
        except BaseException:
            self.kill()
            raise

    def _started(self) -> bool:
        if not self.running:
            raise RuntimeError(f"{' '.join(self._command)} ended:\n{self.log_tail()}")
        return self._ready()

    def log_tail(self, characters: int = 4000) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-characters:]

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it with KILL and waits until it is gone."""
        self._end(signal.SIGKILL, 10)

    def stop(self, number: signal.Signals = signal.SIGTERM, grace: float = 10.0) -> None:
        """Asks it to end, and kills it when it has not after the grace period."""
        self._end(number, grace)

    def _end(self, number: signal.Signals, grace: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
