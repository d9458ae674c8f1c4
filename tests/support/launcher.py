"""Becomes a command that dies with its parent: `launcher.py SIGNAL PARENT_PID USER|- COMMAND...`.

A process between the tests and the server, because code that runs between fork and exec in a process with threads, as
subprocess offers it, may deadlock or wake libraries that watch forks.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(number: str, parent: str, user: str, *command: str) -> None:
    """Drops privileges, ties its life to the parent's, and executes the command."""
    if user != "-":
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != int(parent):
        raise SystemExit("the parent is gone already")
    os.execv(command[0], command)  # noqa: S606  that is what it is for


if __name__ == "__main__":
    main(*sys.argv[1:])
