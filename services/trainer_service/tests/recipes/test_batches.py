"""The order of the data, and how sequences are put together to forward passes (T27)."""

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest

from modelkit.chat import IGNORED, Encoded
from modelkit.collation import collate, forwards
from modelkit.datasets.splitting import split
from modelkit.errors import InvalidDataset
from trainer_service.recipes import packing
from trainer_service.recipes.data import Batches, HeldOut, Layout
from trainer_service.recipes.rows import EncodedRows


class FakeEncoder:
    """Row n becomes n + 2 tokens; the last of them has a label, of every fifth row none."""

    def encode(self, conversations: list[int]) -> list[Encoded]:
        return [self._row(number) for number in conversations]

    def _row(self, number: int) -> Encoded:
        ids = np.full(number % 7 + 2, number, dtype=np.int32)
        labels = np.full_like(ids, IGNORED)
        if number % 5:
            labels[-1] = number
        return Encoded(ids, labels, truncated=number == 3)


def rows_of(count: int) -> EncodedRows:
    rows: Any = list(range(count))
    encoder: Any = FakeEncoder()
    return EncodedRows(rows, encoder)


PADDED, END_TO_END = {"end_to_end": False}, {"end_to_end": True}
PACKED = {"end_to_end": True, "packing": True}


def batches_of(count: int, *, size: int, accumulation: int = 1, seed: int = 1, **layout: bool) -> Batches:
    arranged = Layout(size=size, max_length=8, pad_id=0, **layout)
    return Batches(rows_of(count), np.arange(count), arranged, seed=seed, accumulation=accumulation)


def seen(batches: Batches, first: int, last: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
    """The labelled rows of each step; each has one label."""
    return [
        sorted(chain(*(batch.labels[batch.labels != IGNORED].tolist() for batch in step.batches)))
        for step in batches.steps(first, last, rank=rank, world=world)
    ]


@pytest.mark.parametrize("layout", [PADDED, END_TO_END, PACKED])
def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(layout: dict[str, bool]) -> None:
    batches = batches_of(43, size=4, **layout)
    per_epoch = batches.steps_per_epoch(1)
    assert per_epoch == (6 if layout is PACKED else 11)
    first, second = seen(batches, 0, per_epoch), seen(batches, per_epoch, 2 * per_epoch)
    expected = Counter(number for number in range(43) if number % 5)
    assert Counter(chain(*first)) == Counter(chain(*second)) == expected
    assert first != second
    assert seen(batches_of(43, size=4, **layout), 4, per_epoch + 3) == [*first[4:], *second[:3]]


def test_without_shuffling_every_epoch_has_the_order_of_the_data() -> None:
    layout = Layout(size=2, max_length=8, pad_id=0)
    batches = Batches(rows_of(4), np.arange(4), layout, seed=1, shuffle=False)
    assert seen(batches, 0, 4) == [[1], [2, 3]] * 2
    layout = Layout(size=1, max_length=8, pad_id=0, end_to_end=True, packing=True)
    packed = Batches(rows_of(20), np.arange(20), layout, seed=1, shuffle=False)
    per_epoch = packed.steps_per_epoch(1)
    assert seen(packed, 0, per_epoch) == seen(packed, per_epoch, 2 * per_epoch)


@pytest.mark.parametrize("layout", [PADDED, END_TO_END, PACKED])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_rows_of_each_step(world: int, layout: dict[str, bool]) -> None:
    alone = batches_of(45, size=6, **layout)
    together = batches_of(45, size=6 // world, **layout)
    parts = [seen(together, 0, 9, rank=rank, world=world) for rank in range(world)]
    assert [sorted(chain(*step)) for step in zip(*parts, strict=True)] == seen(alone, 0, 9)
    passes = [[len(step.batches) for step in together.steps(0, 9, rank=rank, world=world)] for rank in range(world)]
    assert all(counts == passes[0] for counts in passes)


def test_a_forward_pass_has_room_for_as_many_tokens_as_its_longest_rows() -> None:
    rows = FakeEncoder().encode([1, 2, 3, 4, 6, 6])  # 3, 4, 5, 6, 8 and 8 tokens
    assert [len(part) for part in forwards(rows, 16, end_to_end=True)] == [3, 2, 1]
    padded = list(forwards(rows[::-1], 16, end_to_end=False))
    assert [[len(row.input_ids) for row in part] for part in padded] == [[3, 4, 5], [6, 8], [8]]
    assert [len(part) for part in forwards(rows, 1, end_to_end=True)] == [1] * 6


def test_sequences_end_to_end_keep_their_positions_and_teach_nothing_across_a_border() -> None:
    everywhere = [Encoded(np.full(n, n, np.int32), np.full(n, n, np.int32), truncated=False) for n in (2, 3)]
    batch = collate(everywhere, pad_id=0, end_to_end=True)
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2]]
    assert batch.input_ids.tolist() == [[2, 2, 3, 3, 3]]
    assert batch.labels.tolist() == [[IGNORED, 2, IGNORED, 3, 3]]
    assert batch.lengths == (2, 3)


def test_bins_hold_every_row_once_and_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 1000).astype(np.int32)
    order = np.arange(5000, 6000)
    arranged = [packing.bins(order, lengths, 512, np.random.default_rng((7, epoch))) for epoch in (0, 1, 0)]
    for arrangement in arranged:
        assert sorted(arrangement.rows) == order.tolist()
        filled = np.add.reduceat(lengths[arrangement.rows - 5000], arrangement.offsets[:-1])
        assert filled.max() <= 512
        assert len(arrangement) <= 1.02 * lengths.sum() / 512 + 1
    assert len(arranged[0]) == len(arranged[1])
    assert arranged[0].rows.tolist() == arranged[2].rows.tolist() != arranged[1].rows.tolist()


def test_a_bin_takes_the_row_that_fits_best() -> None:
    lengths = np.array([3, 6, 5, 2], np.int32)
    arrangement = packing.bins(np.arange(4), lengths, 8, np.random.default_rng(0))
    units = np.split(arrangement.rows, arrangement.offsets[1:-1])
    assert sorted(sorted(unit.tolist()) for unit in units) == [[0, 2], [1, 3]]


def test_blocks_hold_every_token_once_and_are_full_but_for_the_last() -> None:
    documents = [np.arange(100 * n, 100 * n + length, dtype=np.int32) for n, length in enumerate((5, 30, 1, 12, 7))]
    order, lengths = np.arange(5), np.array([len(ids) for ids in documents], np.int32)
    arrangement = packing.blocks(order, lengths, 8, np.random.default_rng(3))
    assert arrangement.cuts is not None
    blocks = []
    for first, last in zip(arrangement.offsets[:-1], arrangement.offsets[1:], strict=True):
        pieces = [Encoded(documents[row], documents[row], truncated=False) for row in arrangement.rows[first:last]]
        blocks.append(packing.join(pieces, arrangement.cuts[first:last]).input_ids)
    assert sorted(len(block) for block in blocks) == [7, 8, 8, 8, 8, 8, 8]
    assert sorted(chain(*blocks)) == sorted(chain(*documents))


def test_held_out_batches_hold_every_labelled_row_once() -> None:
    for layout in (PADDED, END_TO_END):
        held_out = HeldOut(rows_of(30), np.arange(0, 30, 2), Layout(size=2, max_length=8, pad_id=0, **layout))
        labels = [batch.labels[batch.labels != IGNORED].tolist() for batch in held_out.batches]
        assert sorted(chain(*labels)) == [number for number in range(0, 30, 2) if number % 5]
    assert HeldOut(rows_of(5), np.arange(0), Layout(size=2, max_length=8, pad_id=0)).batches == []


def test_counts_are_taken_once_a_row() -> None:
    rows = rows_of(10)
    rows.get([0, 3, 5, 3])
    rows.get(np.arange(4))
    assert (rows.counts.rows, rows.counts.truncated, rows.counts.masked) == (5, 1, 2)


def test_padding_is_on_the_right_and_has_no_labels() -> None:
    batch = collate(FakeEncoder().encode([1, 4]), pad_id=9)
    assert batch.input_ids.tolist() == [[1, 1, 1, 9, 9, 9], [4, 4, 4, 4, 4, 4]]
    assert batch.labels[0].tolist() == [IGNORED, IGNORED, 1, IGNORED, IGNORED, IGNORED]
    assert (collate([], pad_id=9).labels == IGNORED).all()


def test_held_out_rows_are_never_trained_on() -> None:
    trained, held_out, test = split(100, 0.15, seed=3, test_ratio=0.05)
    assert (len(held_out), len(test)) == (15, 5)
    assert sorted([*trained, *held_out, *test]) == list(range(100))
    assert len(split(10, 0.01, seed=3)[1]) == 1
    assert len(split(10, 0.0, seed=3)[1]) == 0
    with pytest.raises(InvalidDataset, match="leave none to train on"):
        split(1, 0.5, seed=3)
