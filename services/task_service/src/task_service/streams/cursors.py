"""Positions in streams, as clients keep them."""

from dataclasses import dataclass
from typing import Self

from servicekit.errors import InvalidArgument, Problem

LARGEST = 2**63 - 1


def parse_event_cursor(cursor: str) -> int | None:
    """Sequence of the last event that was seen, None for an empty cursor. Raises InvalidArgument."""
    if not cursor:
        return None
    (sequence,) = _numbers(cursor, 1)
    return sequence


def format_event_cursor(sequence: int) -> str:
    """The cursor after an event."""
    return str(sequence)


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How far a log was read: lines since its start, the stream's last message, the newest attempt and its last batch.

    The lines alone say where to go on, whether the log lies in the stream or in the object store; the rest only
    saves counting.
    """

    line: int = 0
    sequence: int = 0
    attempt: int = 0
    batch: int = 0

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """The position that a cursor stands for. Raises InvalidArgument."""
        if not cursor:
            return cls()
        return cls(*_numbers(cursor, 4))

    def __str__(self) -> str:
        return f"{self.line}-{self.sequence}-{self.attempt}-{self.batch}"


def _numbers(cursor: str, count: int) -> list[int]:
    parts = cursor.split("-")
    valid = len(parts) == count and all(part.isascii() and part.isdigit() and len(part) <= 19 for part in parts)
    numbers = [int(part) for part in parts] if valid else []
    if not valid or max(numbers) > LARGEST:
        raise InvalidArgument(
            problems=[Problem("cursor", f"{cursor[:100]!r} is not a cursor that this service gave out")],
            reason="BAD_CURSOR",
        )
    return numbers
