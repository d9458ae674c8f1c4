"""Datasets in the local Hugging Face cache; nothing is downloaded."""

import re
from pathlib import Path

from modelkit.errors import InvalidDataset, Problem

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(name: str) -> bool:
    """Whether a name looks like owner/name."""
    return HUB_ID.fullmatch(name) is not None and ".." not in name


def find_snapshot(cache: Path, name: str, *, field: str) -> Path:
    """The directory of a dataset's newest snapshot. Raises InvalidDataset."""
    if not is_hub_id(name):
        raise InvalidDataset(Problem(field, f"{name!r} is not a hub id such as tatsu-lab/alpaca"))
    repository = cache / f"datasets--{name.replace('/', '--')}"
    snapshots = repository / "snapshots"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        revision = ""
    if revision and "/" not in revision and (snapshots / revision).is_dir():
        return snapshots / revision
    found = [entry for entry in snapshots.iterdir() if entry.is_dir()] if snapshots.is_dir() else []
    if found:
        return max(found, key=lambda entry: entry.stat().st_mtime)
    message = (
        f"{name!r} is not on this machine and nothing is downloaded; fetch it with `hf download --repo-type dataset "
        f"{name}`, or give the path of its files"
    )
    raise InvalidDataset(Problem(field, message), reason="DATASET_NOT_FOUND")
