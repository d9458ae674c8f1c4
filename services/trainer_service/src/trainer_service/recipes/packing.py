"""How the rows of a dataset become the units that a step counts: single rows, bins of rows, or blocks of tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from modelkit.chat import Encoded

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The units of one epoch. Unit u holds the pieces offsets[u] to offsets[u + 1].

    Piece p is of the row rows[p]: all of it, or where there are cuts its tokens cuts[p, 0] to cuts[p, 1]. Whole rows
    are sequences of their own, cut ones are joined to one sequence a unit.
    """

    rows: Integers
    offsets: Integers
    cuts: Integers | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1


def singles(order: Integers) -> Arrangement:
    """Each row is a unit."""
    return Arrangement(order, np.arange(len(order) + 1))


def bins(order: Integers, lengths: NDArray[np.int32], capacity: int, generator: np.random.Generator) -> Arrangement:
    """Bins of whole rows with at most `capacity` tokens, in random order: best-fit decreasing (Johnson, 1974).

    lengths[i] is that of the row order[i]. Rows of equal length change places by chance; the number of bins depends
    on the lengths alone.
    """
    by_chance = generator.permutation(len(order))
    decreasing = by_chance[np.argsort(-lengths[by_chance], kind="stable")]
    members: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # by the room that they have left
    rooms: list[int] = []  # those of open_bins, in order
    for position in decreasing.tolist():
        length = int(lengths[position])
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            found = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[at]
        else:
            room, found = capacity, len(members)
            members.append([])
        members[found].append(position)
        if (left := room - length) > 0:
            if left not in open_bins:
                open_bins[left] = []
                insort(rooms, left)
            open_bins[left].append(found)
    shuffled = [members[index] for index in generator.permutation(len(members))]
    return Arrangement(order[np.concatenate(shuffled)], _offsets([len(unit) for unit in shuffled]))


def blocks(order: Integers, lengths: NDArray[np.int32], capacity: int, generator: np.random.Generator) -> Arrangement:
    """Documents in random order, laid end to end and cut into blocks of `capacity` tokens; the last may be shorter."""
    by_chance = generator.permutation(len(order))
    ends = np.cumsum(lengths[by_chance], dtype=np.int64)
    starts = ends - lengths[by_chance]
    edges = np.append(np.arange(0, ends[-1], capacity), ends[-1])
    units = []
    for first, last in pairwise(edges):
        touched = np.arange(np.searchsorted(ends, first, side="right"), np.searchsorted(starts, last, side="left"))
        cuts = np.stack([np.maximum(starts[touched], first), np.minimum(ends[touched], last)], axis=1)
        units.append((order[by_chance[touched]], cuts - starts[touched, None]))
    shuffled = [units[index] for index in generator.permutation(len(units))]
    rows, cuts = (np.concatenate(part) for part in zip(*shuffled, strict=True))
    return Arrangement(rows, _offsets([len(unit) for unit, _ in shuffled]), cuts)


def join(pieces: Sequence[Encoded], cuts: Integers) -> Encoded:
    """One sequence of the tokens cuts[i, 0] to cuts[i, 1] of each piece."""
    spans = list(zip(pieces, cuts.tolist(), strict=True))
    return Encoded(
        input_ids=np.concatenate([piece.input_ids[first:last] for piece, (first, last) in spans]),
        labels=np.concatenate([piece.labels[first:last] for piece, (first, last) in spans]),
        truncated=False,
    )


def _offsets(counts: Sequence[int]) -> Integers:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
