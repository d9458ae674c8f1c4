"""Cutting a list into parts of a bounded size."""

from collections.abc import Sequence


def portions(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Index ranges of neighbours whose sizes add up to limit at most; a single larger one is a part of its own."""
    cuts, total = [0], 0
    for index, size in enumerate(sizes):
        total += size
        if total > limit and index > cuts[-1]:
            cuts.append(index)
            total = size
    return list(zip(cuts, [*cuts[1:], len(sizes)], strict=True)) if sizes else []
