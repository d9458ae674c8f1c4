"""The local cache of the Hugging Face hub, where its tools keep what they downloaded."""

import os
from pathlib import Path


def default_hub_cache() -> Path:
    """Where Hugging Face libraries keep what they downloaded."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"
    return Path(home) / "hub"


def newest_snapshot(repository: Path) -> Path | None:
    """The directory of a repository's main revision, or of the newest one; None when none is there."""
    snapshots = repository / "snapshots"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        revision = ""
    if revision and "/" not in revision and (snapshots / revision).is_dir():
        return snapshots / revision
    found = [entry for entry in snapshots.iterdir() if entry.is_dir()] if snapshots.is_dir() else []
    return max(found, key=lambda entry: entry.stat().st_mtime, default=None)
