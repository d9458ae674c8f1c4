"""What an error of SQLite means for a new connection."""

import sqlite3

import pytest

from servicekit.database import is_busy


@pytest.mark.parametrize(
    ("code", "busy"),
    [
        (sqlite3.SQLITE_BUSY, True),
        (sqlite3.SQLITE_BUSY_RECOVERY, True),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, True),
        (sqlite3.SQLITE_CANTOPEN, False),
        (sqlite3.SQLITE_IOERR_READ, False),
    ],
)
def test_every_kind_of_busy_is_waited_for(code: int, busy: bool) -> None:
    error = sqlite3.OperationalError("locked")
    error.sqlite_errorcode = code
    assert is_busy(error) is busy
