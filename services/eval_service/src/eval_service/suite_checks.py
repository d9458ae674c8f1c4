"""Asks lm-evaluation-harness whether its tasks can be run, in a process of its own.

The harness brings much code along and may load any data of its tasks, so that process is told no secret.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence

from workerkit.child import environment
from workerkit.fork_server_process import without_secrets

logger = logging.getLogger(__name__)

# The first is well within the time that the task service has for a whole check.
SUBMIT_SECONDS, START_SECONDS = 20.0, 180.0


def suite_problems(names: Sequence[str], *, starts: bool) -> list[str]:
    """Why tasks cannot be run. At submit no answer in time is no problem: the worker asks again before it starts."""
    if not names:
        return []
    seconds = START_SECONDS if starts else SUBMIT_SECONDS
    try:
        return _asked(names, seconds)
    except subprocess.TimeoutExpired:
        text = f"lm-evaluation-harness did not say within {seconds:g} s whether its tasks can be run"
        if starts:
            return [f"{text}; try again when the machine has less to do, or leave suites out"]
        logger.warning("%s; the worker will ask again", text)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return [f"lm-evaluation-harness could not say whether its tasks can be run: {error}"]
    return []


def _asked(names: Sequence[str], seconds: float) -> list[str]:
    answer = subprocess.run(
        [sys.executable, "-m", "eval_service.suites", *names],
        env={**without_secrets(os.environ), **environment.VARIABLES},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=True,
    )
    found: list[str] = json.loads(answer.stdout.splitlines()[-1])
    return found
