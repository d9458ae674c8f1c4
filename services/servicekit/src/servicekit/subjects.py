"""Streams and subjects of the platform, in one place because task service and workers must agree on them."""

import hashlib
import string

from nats.js.api import RetentionPolicy, StorageType, StreamConfig

WORK = "WORK"
FACTS = "FACTS"
EVENTS = "EVENTS"
LOGS = "LOGS"
DEADLETTERS = "DEADLETTERS"
ADVISORIES = "ADVISORIES"

DAY_SECONDS = 24 * 3600.0
DUPLICATE_WINDOW_SECONDS = 120.0

# Subjects of everything that happens to anybody's tasks.
ALL_EVENTS = "tunesmith.v1.>"
USER_LETTERS = frozenset(string.ascii_letters + string.digits + "-_")
USER_TOKEN_LENGTH = 128
TASK_ID_LENGTH = 26


def work(kind: str, pool: str, task_id: str) -> str:
    """Subject of a queue message. The task comes last so that its message can be looked up."""
    return f"work.{kind}.{pool}.{task_id}"


def work_filter(kind: str, pool: str) -> str:
    """Subjects that the workers of one pool pull from."""
    return f"work.{kind}.{pool}.>"


def fact(task_id: str) -> str:
    """Subject of what a worker says about a task."""
    return f"fact.{task_id}"


def log(task_id: str) -> str:
    """Subject of a task's log lines."""
    return f"log.{task_id}"


def event(event_type: str, task_id: str) -> str:
    """Subject of an authoritative event, for example type "task.completed"; those of quotas end in a user()."""
    return f"tunesmith.v1.{event_type}.{task_id}"


def user(name: str) -> str:
    """The last part of the subjects of events about a user, which must hold no dots, wildcards or spaces.

    Letters, digits, - and _ stand for themselves and other bytes of the name for =XX. A name that would be long, or
    that has the length of a task's id, is replaced by its hash, so that no user can pass for a task.
    """
    token = "".join(chr(byte) if chr(byte) in USER_LETTERS else f"={byte:02X}" for byte in name.encode())
    if not token or len(token) > USER_TOKEN_LENGTH or len(token) == TASK_ID_LENGTH:
        return f"=={hashlib.sha256(name.encode()).hexdigest()}"
    return token


def events_of(task_id: str) -> str:
    """Subjects of everything that happens to a task."""
    return f"tunesmith.v1.*.*.{task_id}"


def state_changes_of(task_id: str) -> str:
    """Subjects of a task's changes of state."""
    return f"tunesmith.v1.task.*.{task_id}"


def deadletter(original: str) -> str:
    """Subject under which a message that could not be worked on is kept."""
    return f"deadletter.{original}"


def streams() -> list[StreamConfig]:
    """The streams that the platform needs."""
    return [
        _stream(WORK, ["work.>"], RetentionPolicy.WORK_QUEUE),
        _stream(FACTS, ["fact.>"], RetentionPolicy.WORK_QUEUE),
        _stream(EVENTS, [ALL_EVENTS], max_age=7 * DAY_SECONDS),
        _stream(LOGS, ["log.>"]),
        _stream(DEADLETTERS, ["deadletter.>"], max_age=30 * DAY_SECONDS),
        _stream(
            ADVISORIES,
            [
                f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{WORK}.>",
                f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{WORK}.>",
            ],
            RetentionPolicy.WORK_QUEUE,
            max_age=30 * DAY_SECONDS,
        ),
    ]


def _stream(
    name: str,
    subjects: list[str],
    retention: RetentionPolicy = RetentionPolicy.LIMITS,
    max_age: float | None = None,
) -> StreamConfig:
    return StreamConfig(
        name=name,
        subjects=subjects,
        retention=retention,
        storage=StorageType.FILE,
        max_age=max_age,
        duplicate_window=DUPLICATE_WINDOW_SECONDS,
    )
