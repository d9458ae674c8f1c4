"""Files that were made to hurt whoever reads them: refused with a reason, while the process that asks stays small."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow
import pyarrow.parquet
import pytest

from modelkit import apart
from modelkit.datasets import DataCache, convert, locate
from modelkit.errors import InvalidDataset

HERE = "services.modelkit.tests.test_hostile_files"
BOUNDS = apart.Bounds(256 << 20, 20)


@pytest.fixture(autouse=True)
def _readers_of_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


@pytest.fixture
def cache(tmp_path: Path) -> DataCache:
    return DataCache(tmp_path / "cache")


def one_long_text(path: Path) -> None:
    table = pyarrow.table({"text": ["a" * (64 << 20)]})
    pyarrow.parquet.write_table(table, path, compression="brotli", use_dictionary=False, write_statistics=False)


def one_long_list(path: Path) -> None:
    nothing = pyarrow.nulls(16 << 20, pyarrow.int8())
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.ListArray.from_arrays([0, len(nothing)], nothing)}), path
    )


@pytest.mark.parametrize("make", [one_long_text, one_long_list])
def test_a_few_bytes_of_parquet_do_not_become_gigabytes_of_memory(
    tmp_path: Path, cache: DataCache, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    """Faults 44 and 45."""
    monkeypatch.setattr(convert, "MEMORY_BYTES", 48 << 20)
    make(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 4096
    with pytest.raises(InvalidDataset, match=r"a\.parquet needs more than 48 MiB of memory to read, or is damaged"):
        locate(tmp_path / "a.parquet", cache)
    assert not list(cache.root.glob("rows-*"))
    assert not list((cache.root / ".incoming").iterdir())


def test_damaged_parquet_of_every_kind_is_refused_or_read(tmp_path: Path, cache: DataCache) -> None:
    """One byte after the other is damaged, in the page headers and in the metadata at the end."""
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"] * 3, "response": ["b"] * 3}), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for place in (*range(4, 20, 5), *range(len(whole) - 60, len(whole) - 4, 12)):
        damaged = tmp_path / f"{place}.parquet"
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            locate(damaged, cache)
        except InvalidDataset as error:
            assert damaged.name in str(error)


def test_who_asks_for_the_rows_loads_no_library_and_stays_small(tmp_path: Path) -> None:
    one_long_text(tmp_path / "a.parquet")
    code = """
import resource, sys
from pathlib import Path
from modelkit.datasets import DataCache, locate
from modelkit.errors import InvalidDataset
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
locate(Path(sys.argv[1]) / "a.parquet", DataCache(Path(sys.argv[1]) / "cache"))
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10
assert "pyarrow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    (entry,) = (tmp_path / "cache").glob("rows-*")
    assert (entry / "rows.jsonl").stat().st_size > 64 << 20


def loop(_: IO[bytes]) -> None:
    while True:
        pass


def panic(_: IO[bytes]) -> None:
    class PanicException(BaseException):
        """As PyO3 raises it."""

    raise PanicException("out of range")


def crash(_: IO[bytes]) -> None:
    import ctypes

    ctypes.string_at(0)


def allocate(_: IO[bytes]) -> None:
    bytearray(2 * BOUNDS.memory)


def refuse(_: IO[bytes]) -> None:
    print("a library says something")
    raise ValueError("the second line\nis wrong")


def fill_the_disk(_: IO[bytes]) -> None:
    raise OSError(28, "No space left on device")


def write(output: IO[bytes], size: str) -> None:
    output.write(b"x" * int(size))


@pytest.mark.parametrize(("function", "bounds", "error", "words"), [
    (loop, apart.Bounds(256 << 20, 1), apart.Refused, "takes more than 1 s to read"),
    (panic, BOUNDS, apart.Refused, "^out of range$"),
    (crash, BOUNDS, apart.Refused, "needs more than 256 MiB of memory to read, or is damaged"),
    (allocate, BOUNDS, apart.Refused, "needs more than 256 MiB"),
    (refuse, BOUNDS, apart.Refused, "^the second line is wrong$"),
    (fill_the_disk, BOUNDS, OSError, "No space left"),
])  # fmt: skip
def test_whatever_a_reader_does_ends_in_words(
    function: Callable[[IO[bytes]], None], bounds: apart.Bounds, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words), apart.running(f"{HERE}:{function.__name__}", bounds=bounds) as output:
        assert output.read() == b""


def test_a_reader_ends_with_who_asked_and_is_told_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with apart.running(f"{HERE}:write", str(8 << 20), bounds=BOUNDS) as output:
        assert len(output.read()) == 8 << 20
    with apart.running(f"{HERE}:environment", bounds=BOUNDS) as output:
        assert b"AWS_" not in output.read()
    with pytest.raises(KeyError), apart.running(f"{HERE}:write", str(64 << 20), bounds=BOUNDS) as output:
        assert output.read(1) == b"x"
        raise KeyError


def environment(output: IO[bytes]) -> None:
    import os

    output.write(repr(dict(os.environ)).encode())


def test_a_lower_limit_that_a_process_was_started_with_stays() -> None:
    """To raise one needs a privilege: whoever works under `ulimit -v` could read no file."""
    script = (
        "import resource; from modelkit.apart import lower_limit; kind = resource.RLIMIT_NOFILE\n"
        "resource.setrlimit(kind, (64, 64)); lower_limit(kind, 128, 129); print(*resource.getrlimit(kind))\n"
        "lower_limit(kind, 32, 33); print(*resource.getrlimit(kind))\n"
        "lower_limit(kind, 33); print(*resource.getrlimit(kind))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["64", "64", "32", "33", "32", "33"]
