"""Files that are uploaded as datasets: names and forms, and what nobody could read."""

import bz2
import gzip
import lzma
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from servicekit.errors import (
    InvalidArgument,
)
from services.task_service.tests.harness import Client, Service
from services.task_service.tests.uploads import ROWS, archive, nothing_is_left, sqlite_only, stub, upload
from task_service.datasets.files import clean_file_name, unreadable
from tunesmith.task.v1 import dataset_service_pb2 as pb


@sqlite_only
@pytest.mark.parametrize(
    ("file_name", "data"),
    [
        ("a.JSONL", ROWS),
        ("a.json", b"[]"),
        ("a.csv", "question,answer\n\u95ee\u9898,\u7b54\u6848\n".encode()),
        ("a.txt", ROWS[:-9] + b"\n\xff one bad line is for the check of rows\n"),
        ("a.txt", "\u6587".encode() * 50_000),
        ("a.zip", archive("zip")),
        ("a.tar", archive("tar")),
        ("a.tar.gz", archive("tar.gz")),
        ("a.tgz", archive("tar.gz")),
        ("a.tar.bz2", bz2.compress(archive("tar"))),
        ("a.txz", lzma.compress(archive("tar"))),
        ("a.jsonl.gz", gzip.compress(ROWS)),
        ("a.ndjson", ROWS),
        ("a.tsv", b"question\tanswer\na\tb\n"),
        ("a.parquet", b"PAR1 columns PAR1"),
    ],
)
async def test_every_form_is_taken(service: Service, alice: Client, file_name: str, data: bytes) -> None:
    dataset = await upload(alice, data, file_name)
    assert (dataset.name, dataset.size) == ("a", len(data))
    assert await service.objects.get_bytes(dataset.object_key) == data


@sqlite_only
@pytest.mark.parametrize(
    ("file_name", "data", "header", "field"),
    [
        ("model.bin", ROWS, {}, "header.file_name"),
        (".jsonl", ROWS, {}, "header.file_name"),
        ("a.jsonl", b"", {}, "data"),
        ("a.jsonl", ROWS, {"sha256": "0" * 64}, "header.sha256"),
        ("a.jsonl", "\u95ee\u9898\n".encode("gbk") * 30, {}, "data"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), {}, "data"),
        ("a.zip", ROWS, {}, "data"),
        ("a.tar.gz", ROWS, {}, "data"),
        ("a.tgz", archive("tar"), {}, "data"),
        ("a.tar.xz", archive("tar.gz"), {}, "data"),
        ("a.tbz2", ROWS, {}, "data"),
        ("a.csv.gz", ROWS, {}, "data"),
        ("a.gz", gzip.compress(ROWS), {}, "header.file_name"),
        ("a.tsv", "a\tb".encode("utf-16"), {}, "data"),
        ("a.parquet", b"PAR", {}, "data"),
        ("a.jsonl", ROWS, {"name": "a\nb", "type": "\0"}, "header.name header.type"),
    ],
)
async def test_what_nobody_could_read_is_refused(
    service: Service, alice: Client, file_name: str, data: bytes, header: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await upload(alice, data, file_name, **header)
    assert " ".join(problem.field for problem in caught.value.problems) == field
    assert caught.value.reason == "DATASET_UNREADABLE"
    assert await nothing_is_left(service)


@sqlite_only
@pytest.mark.parametrize(("name", "kept"), [("", "a"), ("  ", "a"), (" b c ", "b c")])
async def test_a_dataset_has_a_name_that_can_be_seen(alice: Client, name: str, kept: str) -> None:
    assert (await upload(alice, ROWS, "a.jsonl", name=name)).name == kept


@sqlite_only
async def test_the_first_message_describes_the_file_and_no_other(alice: Client) -> None:
    header, data = (
        pb.UploadDatasetRequest(header=pb.DatasetHeader(file_name="a.txt")),
        pb.UploadDatasetRequest(data=b"a"),
    )
    sequences: Sequence[list[pb.UploadDatasetRequest]] = ([], [data], [header, data, header])
    for requests in sequences:
        with pytest.raises(InvalidArgument) as caught:
            await stub(alice).UploadDataset(iter(requests))
        assert [problem.field for problem in caught.value.problems] == ["header"]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/passwd.jsonl", "passwd.jsonl"),
        ("C:\\data\\\u6570\u636e.csv", "\u6570\u636e.csv"),
        ("a\0b\x1b[31m\u202e.jsonl", "ab[31m.jsonl"),
        ("  .. hidden.txt ", "hidden.txt"),
        ("\u6587" * 200 + ".tar.gz", "\u6587" * 82 + ".tar.gz"),
        ("..", ""),
    ],
)
def test_names_of_files_lose_directories_and_what_cannot_be_seen(name: str, clean: str) -> None:
    assert clean_file_name(name) == clean
    assert len(clean.encode()) <= 255


def test_a_look_at_an_archive_takes_no_more_memory_than_a_block(tmp_path: Path) -> None:
    """Fault 45: its first header says that it goes on for 32 MiB, of which a few kilobytes are stored."""
    header = tarfile.TarInfo("a.jsonl")
    header.type, header.size = tarfile.XHDTYPE, 32 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT) + bytes(header.size))
    tracemalloc.start()
    try:
        unreadable(tmp_path / "a.tar.gz", ".tar.gz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("content", "words"), [
    (bytes(1024), ""),
    (tarfile.TarInfo("a").tobuf(), ""),
    (tarfile.TarInfo("a").tobuf()[:400], "it is not a TAR archive"),
    (b"x" * 1024, "it is not a TAR archive"),
    (b"", "it is not a TAR archive"),
])  # fmt: skip
def test_a_tar_archive_is_known_by_its_first_block(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content))
    assert unreadable(tmp_path / "a.tar", ".tar") == unreadable(tmp_path / "a.tar.gz", ".tar.gz") == words
    (tmp_path / "a.tar.gz").write_bytes(content)
    assert unreadable(tmp_path / "a.tar.gz", ".tar.gz") == "it is not a TAR archive"
