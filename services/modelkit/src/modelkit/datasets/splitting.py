"""Rows taken out by chance: some to evaluate on, some for a test at the end."""

from typing import TYPE_CHECKING, NamedTuple

from modelkit.errors import InvalidDataset, Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STREAM = 1 << 32  # keeps this choice apart from all else that a seed decides


class Split(NamedTuple):
    """Positions of rows, each sorted: those trained on, those evaluated on, those kept for a test at the end."""

    train: "NDArray[np.int64]"
    held_out: "NDArray[np.int64]"
    test: "NDArray[np.int64]"


def sizes(rows: int, eval_ratio: float, test_ratio: float = 0.0) -> tuple[int, int]:
    """How many rows are held out and how many kept for a test; a ratio above 0 takes at least one.

    Raises InvalidDataset when nothing is left to train on.
    """
    held_out, test = (max(1, round(rows * ratio)) if ratio > 0 else 0 for ratio in (eval_ratio, test_ratio))
    if held_out + test >= rows:
        ratios = f"eval_ratio {eval_ratio}" + (f" and test_ratio {test_ratio}" if test_ratio else "")
        raise InvalidDataset(Problem("dataset", f"{rows} rows leave none to train on with {ratios}"))
    return held_out, test


def split(rows: int, eval_ratio: float, seed: int, test_ratio: float = 0.0) -> Split:
    """Takes rows out by chance. Raises InvalidDataset when nothing is left to train on."""
    import numpy as np

    held_out, test = sizes(rows, eval_ratio, test_ratio)
    taken = held_out + test
    order = np.random.default_rng((seed, STREAM)).permutation(rows) if taken else np.arange(rows)
    return Split(np.sort(order[taken:]), np.sort(order[:held_out]), np.sort(order[held_out:taken]))
