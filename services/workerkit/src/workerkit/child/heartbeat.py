"""Signs of life during a step that has nothing to tell for long: a silent child is killed as one that hangs."""

import contextlib
import threading
from collections.abc import Callable, Iterator

BEAT_SECONDS = 10.0


@contextlib.contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Calls beat from a thread every BEAT_SECONDS while it lasts, never after. Events may be written from there."""
    ended = threading.Event()

    def keep_beating() -> None:
        with contextlib.suppress(OSError):  # nobody reads the events any more
            while not ended.wait(BEAT_SECONDS):
                beat()

    thread = threading.Thread(target=keep_beating, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
