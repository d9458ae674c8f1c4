"""The rows of a Parquet file as JSON Lines, for a process of its own: the file may make its reader do anything."""

from typing import IO

import orjson
import pyarrow
import pyarrow.parquet

BATCH_ROWS = 256
BUFFER_BYTES = 1 << 20  # columns are read so much at a time, not whole
FORM = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS


def write_rows(output: IO[bytes], path: str) -> None:
    """Writes every row of a file as a line. Raises ValueError for what is no Parquet file, MemoryError, OSError."""
    with open(path, "rb") as file:  # noqa: PTH123 - what opening says is of the disk, the rest of the file
        try:
            _write(output, file)
        except MemoryError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"is not a Parquet file that can be read: {error}") from error


def _write(output: IO[bytes], file: IO[bytes]) -> None:
    with pyarrow.parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False) as table:
        for batch in table.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            output.writelines(orjson.dumps(row, default=str, option=FORM) for row in batch.to_pylist())
