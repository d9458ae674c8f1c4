"""Datasets in the local Hugging Face cache; nothing is downloaded."""

import re
from pathlib import Path

from modelkit.errors import InvalidDataset, Problem
from modelkit.hub_cache import newest_snapshot

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(name: str) -> bool:
    """Whether a name looks like owner/name."""
    return HUB_ID.fullmatch(name) is not None and ".." not in name


def find_snapshot(cache: Path, name: str, *, field: str) -> Path:
    """The directory of a dataset's newest snapshot. Raises InvalidDataset."""
    if not is_hub_id(name):
        raise InvalidDataset(Problem(field, f"{name!r} is not a hub id such as tatsu-lab/alpaca"))
    snapshot = newest_snapshot(cache / f"datasets--{name.replace('/', '--')}")
    if snapshot is not None:
        return snapshot
    message = (
        f"{name!r} is not on this machine and nothing is downloaded; fetch it with `hf download --repo-type dataset "
        f"{name}`, or give the path of its files"
    )
    raise InvalidDataset(Problem(field, message), reason="DATASET_NOT_FOUND")
