"""A program in a process of its own that reads one JSON object and ends; somebody may ask for an end meanwhile."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICK_SECONDS = 0.25
TOLD_CHARACTERS = 600


class ProcessFailed(Exception):
    """The program ended with an error, or lasted too long; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run is given: seconds, and a function that is called a few times a second and may raise to end it."""

    seconds: float = float("inf")
    tick: Callable[[], None] = lambda: None


def run(program: Path, job: Mapping[str, Any], limits: Limits) -> str:
    """Runs a Python file on an object and returns what it wrote. Raises ProcessFailed, or what tick raises."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-P", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            given: str | None = json.dumps(job)
            while True:
                try:
                    out, words = process.communicate(given, timeout=TICK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    given = None
                    limits.tick()
                if time.monotonic() - began > limits.seconds:
                    raise ProcessFailed(f"it took more than {limits.seconds:.0f} s")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise ProcessFailed(f"status {process.returncode}: {words.strip()[-TOLD_CHARACTERS:]}")
    return out
