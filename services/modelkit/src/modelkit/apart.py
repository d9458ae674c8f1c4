"""Runs a library that reads a stranger's file in a process of its own, whose memory and processor time are limited.

What such a file makes a C++ library allocate, or where it makes it crash, is then no harm to the process that asks. Run
as `python -m modelkit.apart MEMORY CPU_SECONDS MODULE:FUNCTION ARGUMENT...`; the function gets a binary file that its
caller reads, and the arguments.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

REFUSED, FAILED, TOO_LARGE = 3, 4, 5
PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
# One heap and the C library's allocator: address space is what is limited, and others reserve gigabytes of it.
FRUGAL = {
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
}
PR_SET_PDEATHSIG = 1
OOM_SCORE = 800
LAST_BYTES = 4096
MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of memory beyond what the libraries themselves take, and seconds of processor time."""

    memory: int
    cpu_seconds: int


class Refused(ValueError):
    """The file cannot be read within the bounds, or is not what it should be."""


@contextlib.contextmanager
def running(entry: str, *arguments: str, bounds: Bounds) -> Iterator[IO[bytes]]:
    """What a function (`module:function`) writes in a process of its own, which ends with the context.

    Read it to its end: then Refused is raised when the function refused its file or died of it, OSError when it could
    not use the disk.
    """
    limits = (str(bounds.memory), str(bounds.cpu_seconds))
    command = [sys.executable, "-P", "-m", "modelkit.apart", *limits, entry, *arguments]
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | FRUGAL
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            with process.stdout as output:
                yield output
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if status:
            raise _reason(status, _last_line(errors), bounds)


def _reason(status: int, last: str, bounds: Bounds) -> Exception:
    if status == REFUSED:
        return Refused(last)
    if status == FAILED:
        return OSError(last)
    if status == 1:
        return RuntimeError(f"the reader could not be started: {last}")
    if status == -signal.SIGXCPU:
        return Refused(f"takes more than {bounds.cpu_seconds} s to read, or is damaged")
    return Refused(f"needs more than {_words(bounds.memory)} of memory to read, or is damaged")


def _words(memory: int) -> str:
    return f"{memory >> 30} GiB" if memory >> 30 else f"{memory >> 20} MiB"


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - LAST_BYTES))
    lines = errors.read().decode(errors="replace").splitlines()
    return lines[-1][:MAX_MESSAGE] if lines else ""


def main(arguments: list[str]) -> int:
    """The process: imports what the function's module imports, sets the limits, calls it."""
    memory, cpu_seconds, entry, *rest = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    module, _, name = entry.partition(":")
    function = getattr(importlib.import_module(module), name)
    _limit(int(memory), int(cpu_seconds))
    try:
        with os.fdopen(os.dup(1), "wb") as output:
            os.dup2(2, 1)  # what a library prints is no result
            function(output, *rest)
    except MemoryError:
        return TOO_LARGE
    except OSError as error:
        return _say(error, FAILED)
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
        return _say(error, REFUSED)
    return 0


def _say(error: BaseException, status: int) -> int:
    sys.stdout.flush()
    print(" ".join((str(error) or type(error).__name__).split()), file=sys.stderr, flush=True)
    return status


def lower_limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Limits this process; a lower limit that it was started with stays, since to raise one needs a privilege."""
    given = [sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(kind)]
    resource.setrlimit(kind, (min(soft, given[0]), min(soft if hard is None else hard, given[1])))


def _limit(memory: int, cpu_seconds: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    lower_limit(resource.RLIMIT_AS, most)
    lower_limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    lower_limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
