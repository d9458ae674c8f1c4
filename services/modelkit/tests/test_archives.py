"""Archives are unpacked within limits, and nothing is written outside (C15, faults 44 and 45)."""

import gzip
import io
import json
import lzma
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from modelkit.datasets import DataCache, DatasetFiles, locate, validate
from modelkit.datasets.archives import Limits, UnsafeArchive, unpack
from modelkit.datasets.compressed import Forwards
from modelkit.errors import InvalidDataset, Problem
from modelkit.paths import AllowedRoots
from services.modelkit.tests.dataset_files import CONVERSATIONS, ROWS, cache, conversations, tarred, zipped

__all__ = ["cache"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.txz"])
def test_archives_are_unpacked(tmp_path: Path, cache: DataCache, name: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    members = {"set/train.jsonl": lines, "set/valid.jsonl": lines[:200], "__MACOSX/set/._train.jsonl": b"x"}
    (zipped if name.endswith("zip") else tarred)(tmp_path / name, members)
    files = locate(tmp_path / name, cache, roots=AllowedRoots([tmp_path]))
    assert conversations(DatasetFiles(files.train)) == CONVERSATIONS
    assert files.validation is not None


@pytest.mark.parametrize("member", ["../out.jsonl", "/out.jsonl", "a/../../out.jsonl", "..\\out.jsonl", "C:\\x.jsonl"])
@pytest.mark.parametrize("make", [zipped, tarred])
def test_nothing_is_written_outside(tmp_path: Path, make: Any, member: str) -> None:
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    archive = make(tmp_path / f"a.{'zip' if make is zipped else 'tar'}", {"train.jsonl": b"{}", member: b"x"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafeArchive, match="leads outside"):
        unpack(archive, folder)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [folder / "train.jsonl"]


def test_an_archive_without_data_is_named_as_its_user_named_it(tmp_path: Path, cache: DataCache) -> None:
    with pytest.raises(InvalidDataset, match=r"a\.zip has no train\.jsonl; found: notes\.md") as caught:
        locate(zipped(tmp_path / "a.zip", {"notes.md": b"x"}), cache)
    assert str(cache.root) not in str(caught.value)


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("train.jsonl")
        info.type, info.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.addfile(info)
        with pytest.raises(UnsafeArchive, match="link or a device"):
            unpack(tmp_path / "a.tar", tmp_path)
    link = zipfile.ZipInfo("train.jsonl")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UnsafeArchive, match="link or a device"):
        unpack(tmp_path / "a.zip", tmp_path)


def test_a_zip_is_not_read_by_methods_that_unpack_at_once(tmp_path: Path) -> None:
    """Fault 45: of bzip2 and LZMA, zipfile takes whatever a piece becomes into memory, whatever size is stated."""
    for name, method in {"b": zipfile.ZIP_BZIP2, "l": zipfile.ZIP_LZMA}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", method) as archive:
            archive.writestr("train.jsonl", b"{}\n")
        (tmp_path / name).mkdir()
        with pytest.raises(UnsafeArchive, match="deflate"):
            unpack(tmp_path / f"{name}.zip", tmp_path / name)


def test_a_list_of_too_many_members_is_not_read(tmp_path: Path) -> None:
    """Fault 45: its end may state a small size, while the record for large archives has the one that counts."""
    archive = zipped(tmp_path / "a.zip", {f"{number}.jsonl": b"" for number in range(5_000)})
    content = archive.read_bytes()
    at = content.rfind(b"PK\5\6")
    count, size, start = struct.unpack("<HLL", content[at + 10 : at + 20])
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, 10, start, 0)
    archive.write_bytes(content[:at] + record + locator + end)
    assert len(zipfile.ZipFile(archive).namelist()) == 5_000
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeArchive, match="more than 10 files"):
            unpack(archive, tmp_path / "out", Limits(files=10))
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("blocks", [20_000, 1])
def test_a_header_that_goes_on_and_on_is_refused(tmp_path: Path, blocks: int) -> None:
    """Fault 45: a map of the holes of a sparse file has no end; or it ends in the middle."""
    info = tarfile.TarInfo("train.jsonl")
    info.type = tarfile.GNUTYPE_SPARSE
    header, hole = bytearray(info.tobuf(tarfile.GNU_FORMAT)), b"%011o\0%011o\0" % (1, 1)
    header[386:482], header[482], header[483:495] = hole * 4, 1, hole[:12]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(bytes(header) + (hole * 21 + b"\1").ljust(512, b"\0") * blocks)
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDataset, match=r"header that is too large|cannot be unpacked"):
            unpack(tmp_path / "a.tar.gz", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_members_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    """Fault 45: their list is kept in memory too."""
    members = {f"__MACOSX/{number}": b"" for number in range(5)}
    (tmp_path / "out").mkdir()
    for archive in (tarred(tmp_path / "a.tar.gz", members), zipped(tmp_path / "a.zip", members)):
        with pytest.raises(UnsafeArchive, match="more than 4 files"):
            unpack(archive, tmp_path / "out", Limits(files=4))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        info = tarfile.TarInfo("tr\xe4in.jsonl")
        archive.addfile(info)
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tr?in.jsonl"]


def test_bombs_are_refused(tmp_path: Path) -> None:
    zeros = bytes(4 << 20)
    small = Limits(files=50, ratio=10, free_bytes=1 << 20)
    for archive in (
        zipped(tmp_path / "a.zip", {"train.jsonl": zeros}),
        tarred(tmp_path / "a.tar.gz", {"train.jsonl": zeros}),
        tarred(tmp_path / "a.tar.xz", {"train.jsonl": zeros}),
        tarred(tmp_path / "a.tar.bz2", {"__MACOSX/train.jsonl": zeros}),
    ):
        (tmp_path / archive.name[2:]).mkdir()
        with pytest.raises(UnsafeArchive, match="far more than its size"):
            unpack(archive, tmp_path / archive.name[2:], small)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(zeros))
    (tmp_path / "gz").mkdir()
    with pytest.raises(UnsafeArchive, match="far more than its size"):
        unpack(tmp_path / "b.jsonl.gz", tmp_path / "gz", small)
    many = zipped(tmp_path / "many.zip", {f"{number}.jsonl": b"" for number in range(60)})
    with pytest.raises(UnsafeArchive, match="more than 50 files"):
        unpack(many, tmp_path / "zip", small)
    huge = tarfile.TarInfo("train.jsonl")
    huge.pax_headers = {"comment": "x" * (8 << 20)}
    with tarfile.open(tmp_path / "pax.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(huge)
    with pytest.raises(UnsafeArchive, match="header that is too large"):
        unpack(tmp_path / "pax.tar.gz", tmp_path / "gz")


def test_a_note_of_origins_that_is_none_is_passed_over(tmp_path: Path, cache: DataCache) -> None:
    """An archive may bring its own."""
    note = json.dumps([{"first": "1", "file": 5, "unit": "row"}]).encode()
    archive = zipped(tmp_path / "a.zip", {"train.jsonl": b"{}\n", "train.jsonl.origin.json": note})
    (problem,) = validate(locate(archive, cache)).problems
    assert (problem.file, list(problem.first_lines)) == ("train.jsonl", [1])


def packed_with(dictionary: int) -> bytes:
    """An .xz file whose block header asks for a dictionary of so many bits of size (the format's own code for it)."""
    packed = bytearray(lzma.compress(bytes(1024)))
    end = 12 + 4 * (packed[12] + 1)
    packed[16] = dictionary
    packed[end - 4 : end] = struct.pack("<I", zlib.crc32(packed[12 : end - 4]))
    return bytes(packed)


@pytest.mark.parametrize(
    "content",
    [packed_with(40), lzma.compress(bytes(10)) + packed_with(38), b"\x5d" + b"\xff" * 12 + lzma.compress(bytes(10))],
)
def test_a_header_that_asks_for_gigabytes_of_memory_is_refused(tmp_path: Path, content: bytes) -> None:
    """Fault 45: a dictionary of 4 GiB, in the first stream, a later one, or in the older format."""
    (tmp_path / "a.tar.xz").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsafeArchive, match="needs more than 128 MiB of memory to unpack"):
        unpack(tmp_path / "a.tar.xz", tmp_path / "out")


def test_several_streams_with_zeros_between_are_one_archive(tmp_path: Path) -> None:
    members = {f"{number}.jsonl": bytes([number]) * (number << 18) for number in range(6)}
    content = tarred(tmp_path / "a.tar", members).read_bytes()
    parts = [lzma.compress(content[at : at + 700_000], preset=0) for at in range(0, len(content), 700_000)]
    (tmp_path / "a.txz").write_bytes(bytes(8).join(parts) + bytes(16))
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a.txz", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == members
    (tmp_path / "cut.txz").write_bytes(parts[0][:-20])
    with pytest.raises(InvalidDataset, match=r"cut\.txz cannot be unpacked"):
        unpack(tmp_path / "cut.txz", tmp_path / "cut")


def test_nothing_is_unpacked_twice() -> None:
    """Fault 45: a step back in a compressed file would begin again, for each member."""
    stream = Forwards(io.BytesIO(bytes(range(256)) * 20), 6000, UnsafeArchive(Problem("dataset", "too large")))
    assert stream.read(2000)[-1] == stream.seek(1999) % 256 == stream.read(1)[0]
    assert (stream.seek(4000), stream.read(2), stream.tell()) == (4000, bytes([160, 161]), 4002)
    assert stream.seek(9999) == 5120
    assert stream.read(5) == b""
    with pytest.raises(EOFError):
        stream.seek(0)
    small = Forwards(io.BytesIO(bytes(5000)), 4000, UnsafeArchive(Problem("dataset", "too large")))
    with pytest.raises(UnsafeArchive, match="too large"):
        small.seek(4500)
