"""Work that goes on beside training, one piece at a time."""

import os
import threading
from collections.abc import Callable

NICENESS = 5  # above that of training


class Background:
    """Runs work in a thread that leaves the processors to training. What fails is raised where it is waited for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins when what was begun before is over. Raises what that failed with."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what the work failed with, if it is over."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is under way. Raises what the work failed with, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, work: Callable[[], None]) -> None:
        try:
            os.nice(NICENESS)  # Linux: of this thread alone
            work()
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits
            self._failure = error
