"""The fork server: a small process that has imported what its jobs need and forks a ready child for each of them.

Run by `workerkit.fork_server_process` as `python -m workerkit.fork_server FD PRELOAD ENTRY`. FD is one end of a
SOCK_SEQPACKET socket pair; PRELOAD is a module that is imported for what it imports; ENTRY is `module:function`, called
in each child with the job's directory, and returns the exit code.

Messages are JSON objects. Requests: {"op": "start", "id", "job_dir", "env", "entry"} with two pipe ends (events, log)
as SCM_RIGHTS; {"op": "signal", "id", "signal"}; {"op": "kill", "id"}. Answers: {"op": "ready"},
{"op": "started", "id", "pid"}, {"op": "failed", "id", "error"}, {"op": "exited", "id", "pid", "status", "peak_memory"}.

The parent never touches a tensor or CUDA: either would hang or break its children. It outlives neither its worker
(the socket's end of file) nor its children it (PR_SET_PDEATHSIG). It is the reaper of what its children leave behind,
so processes that a child had started in sessions of their own, as torchrun does, die with the child.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from workerkit.launcher import EVENTS_FD_VARIABLE

MESSAGE_BYTES = 1 << 17
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
OOM_SCORE = 800
OPEN_FILES = 65536
CLEAN_UP_SECONDS = 5.0
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def set_process_option(option: int, value: int) -> None:
    """Calls prctl(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def held_back(signals: Collection[signal.Signals]) -> Iterator[None]:
    """Signals that come meanwhile are delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def resolve(entry: str) -> Any:
    """The function that a `module:function` names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def children_of(parent: int) -> list[int]:
    """Processes whose parent is the given one."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a pathlib object per process is too slow here
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{entry}/stat").read_bytes()
            if int(stat.rpartition(b")")[2].split()[1]) == parent:
                found.append(int(entry))
    return found


def kill_group(leader: int) -> None:
    """Kills a process and the group that it leads."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(leader, signal.SIGKILL)


class ForkServer:
    """Forks children on request and tells when they end."""

    def __init__(self, control: socket.socket, entry: str) -> None:
        self._control = control
        self._entry = entry
        self._jobs: dict[int, int] = {}  # pid: id of the request
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> None:
        """Serves until the worker has gone, then ends every child."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        try:
            self._answer({"op": "ready", "pid": os.getpid()})
            while self._serve_once():
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self._end_all()

    def _serve_once(self) -> bool:
        ready = {key.fileobj for key, _ in self._selector.select()}
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            self._reap()
        if self._control in ready:
            data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 4)
            if not data:
                return False
            self._handle(json.loads(data), descriptors)
        return True

    def _answer(self, message: dict[str, Any]) -> None:
        self._control.send(json.dumps(message).encode())

    def _handle(self, request: dict[str, Any], descriptors: list[int]) -> None:
        if request["op"] == "start":
            try:
                pid = self._fork(request, descriptors)
            except OSError as error:
                self._answer({"op": "failed", "id": request["id"], "error": str(error)})
                return
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            self._jobs[pid] = request["id"]
            self._answer({"op": "started", "id": request["id"], "pid": pid})
            return
        for pid in [pid for pid, job in self._jobs.items() if job == request["id"]]:
            if request["op"] == "kill":
                kill_group(pid)
            else:
                os.kill(pid, request["signal"])

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> int:
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        with held_back(ENDINGS):  # a request to end that comes now is not for a child that still ignores it
            pid = os.fork()
            if not pid:
                for number in (signal.SIGCHLD, *ENDINGS):
                    signal.signal(number, signal.SIG_DFL)
        if pid:
            return pid
        code = 1
        try:
            self._become_child(parent, request, descriptors)
            code = int(resolve(request.get("entry") or self._entry)(Path(request["job_dir"])) or 0)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001 - the child must end here, whatever happened
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _become_child(self, parent: int, request: dict[str, Any], descriptors: list[int]) -> None:
        os.setsid()
        set_process_option(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the option was set
            os._exit(1)
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._control.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        events, log = descriptors
        for target in (1, 2):
            os.dup2(log, target)
        os.close(log)
        sys.stdout, sys.stderr = (
            open(number, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            for number in (1, 2)
        )
        os.set_inheritable(events, True)
        os.environ.update(request["env"])
        os.environ[EVENTS_FD_VARIABLE] = str(events)
        limit_resources()
        os.chdir(request["job_dir"])

    def _reap(self) -> None:
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            pid = info.si_pid
            job = self._jobs.get(pid)
            if job is not None:
                kill_group(pid)  # before its id is free again
            _, status, usage = os.wait4(pid, 0)
            self._jobs.pop(pid, None)
            self._kill_orphans()
            if job is not None:
                code = os.waitstatus_to_exitcode(status)
                peak = usage.ru_maxrss * 1024
                self._answer({"op": "exited", "id": job, "pid": pid, "status": code, "peak_memory": peak})

    def _kill_orphans(self) -> None:
        for pid in children_of(os.getpid()):
            if pid not in self._jobs:
                with contextlib.suppress(ProcessLookupError):
                    group = os.getpgid(pid)
                    if group != os.getpgrp():
                        kill_group(group)
                    os.kill(pid, signal.SIGKILL)

    def _end_all(self) -> None:
        for pid in self._jobs:
            kill_group(pid)
        self._jobs.clear()
        deadline = time.monotonic() + CLEAN_UP_SECONDS
        while time.monotonic() < deadline:
            self._kill_orphans()
            try:
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
            except ChildProcessError:
                return
            time.sleep(0.01)


def limit_resources() -> None:
    """No core dumps, enough open files, and first in line when the machine runs out of memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def main(arguments: list[str]) -> None:
    """Imports what children need and serves."""
    descriptor, preload, entry = arguments
    control = socket.socket(fileno=int(descriptor))
    control.set_inheritable(False)
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # the worker alone decides when children end
    set_process_option(PR_SET_CHILD_SUBREAPER, 1)
    importlib.import_module(preload)
    resolve(entry)
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        print(f"fork server: {preload} has started threads, which may hang children: {names}", file=sys.stderr)
    gc.collect()
    gc.freeze()
    ForkServer(control, entry).serve()
    os._exit(0)  # the libraries' own clean-up takes long and complains


if __name__ == "__main__":
    main(sys.argv[1:])
