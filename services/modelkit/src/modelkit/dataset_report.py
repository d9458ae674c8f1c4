"""What a dataset is like before anything is trained on it: repeats, overlap, classes, lengths, and advice."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkit.datasets import DatasetReport, FileReport, JsonlDataset
from modelkit.datasets.duplicates import Duplicates, find_duplicates, hashes_of
from modelkit.encoded import IGNORED, Encoded, RowEncoder

BLOCK_ROWS = 256
BINS = 20
FEW_ROWS = 1000
MANY_DUPLICATES = 0.01
MANY_CUT = 0.05
UNBALANCED = 10
VALIDATION_SHARE = (0.1, 0.2)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of rows before they are cut. Bin i counts the rows with at least upper[i - 1] and less than upper[i]."""

    rows: int
    mean: float
    median: int
    p95: int
    longest: int
    truncated_share: float
    masked_share: float
    upper: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a row's text as the model sees it, and whether it is learnt."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found beside the problems. Lines are those of the training file, from 1."""

    duplicates: Duplicates = field(default_factory=lambda: Duplicates(0, 0, (), ()))
    exact_lines: tuple[tuple[int, int], ...] = ()
    near_lines: tuple[tuple[int, int], ...] = ()
    overlap: int = 0
    lengths: Lengths | None = None
    samples: tuple[tuple[Piece, ...], ...] = ()
    advice: tuple[str, ...] = ()


def examine(
    report: DatasetReport,
    *,
    encoder: RowEncoder | None = None,
    backend: Any = None,
    max_length: int = 512,
    preview_rows: int = 3,
    seconds: float = 20.0,
) -> Findings:
    """Looks at every row; at as many tokens as the time allows, of rows taken by chance.

    encoder cuts nothing, backend is its tokenizer; without them there are no token figures. Raises InvalidTemplate,
    OSError.
    """
    rows = JsonlDataset(report.train)
    hashes = hashes_of(rows)
    duplicates = find_duplicates(rows, hashes)
    overlap = sum(_overlap(hashes, other) for other in (report.validation, report.test) if other is not None)
    lengths = measure(rows, encoder, max_length, seconds) if encoder is not None and len(rows) else None
    samples = encoder.encode(rows[:preview_rows]) if encoder is not None else []
    lines = report.train.lines
    return Findings(
        duplicates=duplicates,
        exact_lines=tuple((lines[one], lines[other]) for one, other in duplicates.exact_pairs),
        near_lines=tuple((lines[one], lines[other]) for one, other in duplicates.near_pairs),
        overlap=overlap,
        lengths=lengths,
        samples=tuple(tuple(pieces(sample, backend, max_length)) for sample in samples),
        advice=tuple(advise(report, duplicates, overlap, lengths, max_length)),
    )


def measure(rows: JsonlDataset, encoder: RowEncoder, max_length: int, seconds: float) -> Lengths:
    """Lengths of the rows, of as many as the time allows. Raises InvalidTemplate, OSError."""
    order = np.random.default_rng(0).permutation(len(rows))
    until = time.monotonic() + seconds
    lengths: list[int] = []
    masked = 0
    for start in range(0, len(order), BLOCK_ROWS):
        for row in encoder.encode([rows[int(index)] for index in order[start : start + BLOCK_ROWS]]):
            lengths.append(len(row.input_ids))
            masked += row.label < 0 and not (row.labels[:max_length] != IGNORED).any()
        if time.monotonic() > until:
            break
    return _lengths(np.array(lengths), masked, max_length)


def _lengths(found: NDArray[np.int64], masked: int, max_length: int) -> Lengths:
    edges = np.unique(np.linspace(0, int(found.max()) + 1, BINS + 1).round().astype(np.int64))
    counts, _ = np.histogram(found, edges)
    return Lengths(
        rows=len(found),
        mean=float(found.mean()),
        median=int(np.median(found)),
        p95=int(np.percentile(found, 95)),
        longest=int(found.max()),
        truncated_share=float((found > max_length).mean()),
        masked_share=masked / len(found),
        upper=tuple(int(edge) for edge in edges[1:]),
        counts=tuple(int(count) for count in counts),
    )


def pieces(row: Encoded, backend: Any, max_length: int) -> Iterator[Piece]:
    """The text that is left of a row, cut where learnt and other tokens meet."""
    ids, learnt = row.input_ids[:max_length], row.labels[:max_length] != IGNORED
    edges = [0, *(np.flatnonzero(learnt[1:] != learnt[:-1]) + 1).tolist(), len(ids)]
    for start, end in pairwise(edges):
        if start < end:
            text = backend.decode(ids[start:end].tolist(), skip_special_tokens=False)
            yield Piece(text, bool(learnt[start]))


def advise(
    report: DatasetReport, duplicates: Duplicates, overlap: int, lengths: Lengths | None, max_length: int
) -> Iterator[str]:
    """What would make the dataset better."""
    rows = report.rows
    if rows < FEW_ROWS:
        yield f"There are {rows} rows; at least {FEW_ROWS} make results more reliable."
    repeated = duplicates.exact + duplicates.near
    if rows and repeated / rows > MANY_DUPLICATES:
        yield f"{repeated} of {rows} rows repeat others ({duplicates.exact} exactly); remove them."
    if overlap:
        yield f"{overlap} rows of the validation or test split are in the training split too; remove them from one."
    if report.validation is None:
        least, most = (f"{share:.0%}" for share in VALIDATION_SHARE)
        yield f"There is no validation split; hold out {least} to {most} with eval_ratio, or give a validation file."
    elif report.validation.rows and report.validation.rows / (rows + report.validation.rows) < VALIDATION_SHARE[0] / 2:
        yield f"The validation split has only {report.validation.rows} rows; 10% to 20% of all are usual."
    yield from _advise_on_classes(report.train.labels)
    if lengths is not None:
        yield from _advise_on_lengths(lengths, rows, max_length)


def _advise_on_classes(labels: dict[str, int]) -> Iterator[str]:
    if not labels:
        return
    most, least = max(labels, key=lambda name: labels[name]), min(labels, key=lambda name: labels[name])
    if labels[most] > UNBALANCED * labels[least]:
        yield (
            f"The classes are out of balance: {most!r} has {labels[most]} rows, {least!r} has {labels[least]}; "
            "collect more of the rare ones."
        )


def _advise_on_lengths(lengths: Lengths, rows: int, max_length: int) -> Iterator[str]:
    if lengths.rows < rows:
        yield f"Token figures are of {lengths.rows} rows taken by chance, not of all {rows}."
    if lengths.truncated_share > MANY_CUT:
        yield (
            f"{lengths.truncated_share:.0%} of the rows are longer than {max_length} tokens and would be cut; "
            f"a max_seq_length of {lengths.p95} keeps 95% of them whole."
        )
    if lengths.masked_share:
        yield f"Of {lengths.masked_share:.1%} of the rows nothing is left to learn at {max_length} tokens."


def _overlap(hashes: NDArray[np.uint64], other: FileReport) -> int:
    return int(np.isin(hashes_of(JsonlDataset(other)), hashes).sum())


def nothing_to_learn(rows: Sequence[Any], sizes: Sequence[int], encoder: RowEncoder, seconds: float) -> bool:
    """Whether all rows are cut before what is to be learnt; the shortest are looked at first, for so many seconds.

    Raises InvalidTemplate, OSError.
    """
    until = time.monotonic() + seconds
    order = np.argsort(np.asarray(sizes[: len(rows)], dtype=np.int64), kind="stable")
    for start in range(0, len(order), BLOCK_ROWS):
        chosen = [rows[int(index)] for index in order[start : start + BLOCK_ROWS]]
        if any(not row.masked for row in encoder.encode(chosen)) or time.monotonic() > until:
            return False
    return len(order) > 0
