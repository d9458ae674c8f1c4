"""Files that are whole or not there."""

import os
from pathlib import Path


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Writes a file under another name and renames it, so that readers see the old or the new content."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
    staging.replace(path)


def last_lines(path: Path, count: int, most_bytes: int = 64 * 1024) -> list[str]:
    """The last lines of a file that may be large; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
