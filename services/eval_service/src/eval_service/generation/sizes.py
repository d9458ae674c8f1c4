"""Sizes as people read them."""


def in_words(count: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
