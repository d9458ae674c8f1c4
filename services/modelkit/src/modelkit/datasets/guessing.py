"""What data is for, when nobody says it: the first rows tell."""

from itertools import islice
from pathlib import Path

import orjson

from modelkit.datasets.columns import CLASSIFICATION, PRETRAINING, SUPERVISED, ColumnNames, RowError, columns_of
from modelkit.datasets.lines import read_lines

FIRST_LINES = 20


def guess_objective(path: Path, columns: ColumnNames) -> str:
    """What the first row of a JSON Lines file can be used for: conversations before classes before plain text."""
    if columns.label:
        return CLASSIFICATION
    for _, line in islice(read_lines(path), FIRST_LINES):
        try:
            row = orjson.loads(line or b"")
        except ValueError:
            continue
        if isinstance(row, dict):
            return _of_row(set(row), columns)
    return SUPERVISED


def _of_row(names: set[str], columns: ColumnNames) -> str:
    possible = {}
    for objective in (SUPERVISED, CLASSIFICATION, PRETRAINING):
        try:
            possible[objective] = columns_of(names, objective, columns)
        except RowError:
            continue
    supervised = possible.get(SUPERVISED)
    if supervised is not None and (not supervised.text or CLASSIFICATION not in possible or columns.text):
        return SUPERVISED
    return CLASSIFICATION if CLASSIFICATION in possible else PRETRAINING if possible else SUPERVISED
