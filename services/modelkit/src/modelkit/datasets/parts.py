"""The rows of a checked dataset by what they are for, the same wherever it is asked: the rows of a file, or a share
taken out by chance of those that would be trained on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelkit.datasets.jsonl import FileReport, JsonlDataset
from modelkit.datasets.source import DatasetReport
from modelkit.datasets.splitting import split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Part:
    """Positions, sorted, of rows of a file."""

    report: FileReport
    rows: JsonlDataset
    positions: "NDArray[np.int64]"

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class Parts:
    """What is trained on, what is evaluated on while training, and what is kept for a test at the end."""

    train: Part
    validation: Part
    test: Part


def parts_of(report: DatasetReport, *, max_samples: int, eval_ratio: float, test_ratio: float, seed: int) -> Parts:
    """A split that has a file is that file; else its ratio of the first max_samples rows (0: all) is taken out.

    Raises InvalidDataset when nothing is left to train on, OSError.
    """
    rows = JsonlDataset(report.train, max_rows=max_samples)
    ratios = (0.0 if report.validation else eval_ratio, 0.0 if report.test else test_ratio)
    chosen = split(len(rows), ratios[0], seed, ratios[1])
    return Parts(
        train=Part(report.train, rows, chosen.train),
        validation=whole(report.validation) if report.validation else Part(report.train, rows, chosen.held_out),
        test=whole(report.test) if report.test else Part(report.train, rows, chosen.test),
    )


def whole(report: FileReport, *, max_samples: int = 0) -> Part:
    """All rows of a file, or the first max_samples. Raises OSError."""
    import numpy as np

    rows = JsonlDataset(report, max_rows=max_samples)
    return Part(report, rows, np.arange(len(rows)))
