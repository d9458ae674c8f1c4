"""Forks recipe processes for tests from one process that has everything imported, as a worker's fork server does.

Each line on standard input is a JSON list: ["start", job directory, environment] answers the process id,
["wait", process id] answers the exit code (negative: the signal that ended it).
"""

import json
import os
import sys
from pathlib import Path

import trainer_service.recipes.preload  # noqa: F401
from trainer_service.recipes.entry import run_job


def start(directory: str, environment: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        log = os.open(Path(directory, "log.txt"), os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = run_job(
            Path(directory), os.open(Path(directory, "events.jsonl"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        )
    finally:
        os._exit(code)


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "start":
            print(start(*arguments), flush=True)
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(arguments[0], 0)[1]), flush=True)


if __name__ == "__main__":
    main()
