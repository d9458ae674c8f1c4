"""What processes of models do that never get to work, or stop in the middle of it."""

import signal
import socket
from pathlib import Path

READY = b'{"event": "ready", "at_once": 1, "memory": 1}\n'
ANSWER = b'{"event": "text", "id": 1, "text": "Yes."}\n{"event": "done", "id": 1}\n'


def wait(directory: Path) -> int:
    """Waits until it is killed."""
    signal.pause()
    return 0


def connect_and_wait(directory: Path) -> int:
    """Connects, and never says a word."""
    return _talk()


def hang_when_asked(directory: Path) -> int:
    """Says that its model is there, and does nothing about the first message that comes."""
    return _talk(READY, b"")


def answer_at_once(directory: Path) -> int:
    """Says that its model is there, answers the first question with a word, and has nothing else to do."""
    return _talk(READY, ANSWER)


def talk_nonsense(directory: Path) -> int:
    """Says what no process of a model says, and stays."""
    return _talk(b"{}\n")


def _talk(first: bytes = b"", then: bytes | None = None) -> int:
    """Says something, then something else once it is spoken to, and stays."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.connect("socket")
        connected.sendall(first)
        if then is not None:
            spoken_to = connected.recv(1)
            if spoken_to:  # and not left
                connected.sendall(then)
        signal.pause()
    return 0
