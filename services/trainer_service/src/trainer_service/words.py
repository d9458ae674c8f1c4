"""Figures as people read them, the same in logs, notes and refusals."""


def size(count: float) -> str:
    """Bytes for people, for example "12.3 GB"; 1 GB is 10**9 bytes."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"
