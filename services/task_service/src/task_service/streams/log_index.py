"""Positions met while reading live logs, so that the next read of the same log begins near its end."""

from bisect import bisect_right
from collections import OrderedDict

from task_service.streams.cursors import LogPosition

TASKS = 64
POSITIONS = 1024
LINES_APART = 500


class LogIndex:
    """Keeps some positions of some logs; forgets those not used for longest."""

    def __init__(self) -> None:
        self._positions: OrderedDict[str, list[LogPosition]] = OrderedDict()

    def add(self, task_id: str, position: LogPosition) -> None:
        """Remembers a position when it is some way past those known."""
        known = self._positions.setdefault(task_id, [])
        self._positions.move_to_end(task_id)
        if known and position.line < known[-1].line + LINES_APART:
            return
        known.append(position)
        if len(known) > POSITIONS:
            del known[::2]
        if len(self._positions) > TASKS:
            self._positions.popitem(last=False)

    def nearest(self, task_id: str, line: int, start: LogPosition, last: int) -> LogPosition:
        """The last known position at or before a line; start when none lies between it and the message last.

        Positions beyond the last message are from a stream that was lost, and none of the log's is of use any more.
        """
        known = self._positions.get(task_id, [])
        if known and known[-1].sequence > last:
            del self._positions[task_id]
            return start
        index = bisect_right(known, line, key=lambda position: position.line) - 1
        if index >= 0 and known[index].sequence > start.sequence and known[index].line >= start.line:
            return known[index]
        return start
