"""Where the rows of a converted file came from, so that a problem names the file and row that a user knows."""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

SUFFIX = ".origin.json"


@dataclass(frozen=True, slots=True)
class Segment:
    """Lines from first on are the rows of a file, counted from 1; unit is what is counted ("line", "row")."""

    first: int
    file: str
    unit: str = "row"


class Origins:
    """The segments of a converted file; a file without any is its own origin."""

    def __init__(self, file: str, segments: tuple[Segment, ...] = ()) -> None:
        self._segments = segments or (Segment(1, file, "line"),)
        self._firsts = [segment.first for segment in self._segments]

    @classmethod
    def of(cls, path: Path) -> "Origins":
        """The origins that are noted beside a file."""
        try:
            noted = orjson.loads(path.with_name(path.name + SUFFIX).read_bytes())
            return cls(path.name, tuple(_segment(**segment) for segment in noted))
        except (OSError, ValueError, TypeError):
            return cls(path.name)

    @property
    def file(self) -> str:
        """The file's name, or that of the first of several."""
        return self._segments[0].file

    def find(self, line: int) -> tuple[str, str, int]:
        """File, unit and number of a line; line 0 is the file as a whole."""
        segment = self._segments[max(0, bisect_right(self._firsts, line) - 1)]
        return segment.file, segment.unit, line - segment.first + 1 if line else 0


def _segment(first: Any, file: Any, unit: Any) -> Segment:
    """A segment as it was noted, which an archive may pretend to have been. Raises TypeError for anything else."""
    if not (isinstance(first, int) and isinstance(file, str) and isinstance(unit, str)):
        raise TypeError("no segment")
    return Segment(first, file, unit)


def note(path: Path, segments: list[Segment]) -> None:
    """Writes the origins of a converted file beside it."""
    content: list[dict[str, Any]] = [
        {"first": segment.first, "file": segment.file, "unit": segment.unit} for segment in segments
    ]
    path.with_name(path.name + SUFFIX).write_bytes(orjson.dumps(content))
