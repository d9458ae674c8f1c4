"""Puts a finished result into its directory: beside it first, on disk for certain, then under its name in one step."""

import asyncio
import contextlib
import json
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from modelkit.disk import sync

OWNER = ".tunesmith.json"


async def place(
    source: Path, target: Path, *, task_id: str, attempt: int, ensure: Callable[[], Awaitable[None]]
) -> Path:
    """Brings the files of source to target, whole or not at all; where they are now. Raises OSError.

    A target that holds another's files is left alone: then the result goes to a directory beside it that is named after
    the task. Files are linked where that is possible, else copied.
    """
    stop = threading.Event()
    prefix = f".{target.name}.{task_id}-"
    staging = target.parent / f"{prefix}{attempt}.tmp"
    owner = json.dumps({"task_id": task_id, "attempt": attempt})
    copying = asyncio.ensure_future(asyncio.to_thread(_copy, source, staging, prefix, owner, stop))
    try:
        await asyncio.shield(copying)
        await ensure()
        return await asyncio.to_thread(_rename, staging, target, task_id)
    except BaseException:
        stop.set()
        await asyncio.wait([copying])
        await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
        raise


def may_be_written(target: Path, task_id: str = "") -> bool:
    """Whether a directory is free for a task's output: missing, empty, or that task's own from an earlier attempt."""
    try:
        entries = os.listdir(target)  # noqa: PTH208
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not entries or (bool(task_id) and _owner(target) == task_id)


def _owner(target: Path) -> str:
    try:
        return str(json.loads((target / OWNER).read_bytes())["task_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _copy(source: Path, staging: Path, prefix: str, owner: str, stop: threading.Event) -> None:
    staging.parent.mkdir(parents=True, exist_ok=True)
    for entry in staging.parent.iterdir():
        if entry.name.startswith(prefix):  # left by an attempt that was killed here
            shutil.rmtree(entry, ignore_errors=True)
    staging.mkdir()
    (staging / OWNER).write_text(owner)
    sync(staging / OWNER)
    for folder, _, names in os.walk(source):
        destination = staging / Path(folder).relative_to(source)
        destination.mkdir(exist_ok=True)
        for name in names:
            if stop.is_set():
                return
            _copy_file(Path(folder) / name, destination / name)
        sync(destination)


def _copy_file(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, destination, follow_symlinks=False)
    sync(destination)


def _rename(staging: Path, target: Path, task_id: str) -> Path:
    if not may_be_written(target, task_id):
        target = target.parent / f"{target.name}-{task_id}"
    former = target.parent / f".{target.name}.{task_id}.former"
    with contextlib.suppress(FileNotFoundError):
        target.rename(former)
    staging.rename(target)
    sync(target.parent)
    shutil.rmtree(former, ignore_errors=True)
    return target
