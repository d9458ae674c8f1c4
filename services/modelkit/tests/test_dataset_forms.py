"""Every kind of file, directory and archive becomes the same rows (C8, C9, C15, C26, F25, M34, faults 44 and 45)."""

import csv
import gzip
import io
import json
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from modelkit.datasets import (
    CLASSIFICATION,
    PRETRAINING,
    ColumnNames,
    DataCache,
    DatasetFiles,
    JsonlDataset,
    LabelledText,
    Reading,
    convert,
    locate,
    scan,
    validate,
)
from modelkit.datasets.archives import Limits, UnsafeArchive, unpack
from modelkit.datasets.columns import BOTH, NEITHER
from modelkit.datasets.guessing import guess_objective
from modelkit.errors import InvalidDataset
from modelkit.paths import AllowedRoots

ROWS = [{"instruction": f"Ask\n{number}", "input": "", "output": f"Täll, {number}"} for number in range(600)]
CONVERSATIONS = [[("user", row["instruction"]), ("assistant", row["output"])] for row in ROWS]


@pytest.fixture
def cache(tmp_path: Path) -> DataCache:
    return DataCache(tmp_path / "cache")


def conversations(files: DatasetFiles) -> list[Any]:
    report = validate(files)
    assert report.problems == ()
    return [[(turn["role"], turn["content"]) for turn in row] for row in JsonlDataset(report.train)]


def jsonl(path: Path, rows: list[Any] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": jsonl,
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "b.json": lambda path: path.write_text(json.dumps({"version": {"of": ["x"]}, "data": ROWS, "more": 1})),
    "c.json": jsonl,
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl(path.with_suffix("")).read_bytes())),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, cache: DataCache, name: str) -> None:
    WRITERS[name](tmp_path / name)
    files = locate(tmp_path / name, cache, roots=AllowedRoots([tmp_path]))
    assert conversations(files) == CONVERSATIONS
    again = locate(tmp_path / name, cache)
    assert again.train == files.train


def test_json_is_read_in_pieces(tmp_path: Path, cache: DataCache) -> None:
    rows = [{"prompt": "p" * (number % 3000), "completion": f"c {number}"} for number in range(1, 3000)]
    (tmp_path / "a.json").write_text(json.dumps({"rows": rows}, ensure_ascii=False))
    assert (tmp_path / "a.json").stat().st_size > 4 << 20
    report = validate(locate(tmp_path / "a.json", cache))
    assert (report.rows, report.problems) == (2999, ())


def test_problems_name_the_row_that_the_user_knows(tmp_path: Path, cache: DataCache) -> None:
    folder = tmp_path / "data"
    jsonl(folder / "one.jsonl", [ROWS[0], {"instruction": "a", "output": ""}, ROWS[1]])
    (folder / "two.jsonl").write_text("no json\n" + json.dumps(ROWS[2]))
    problems = validate(locate(folder, cache)).problems
    assert [(problem.file, problem.reason, problem.first_lines) for problem in problems] == [
        ("one.jsonl", "EMPTY_REPLY", [2]),
        ("two.jsonl", "NOT_JSON", [1]),
    ]
    (tmp_path / "a.csv").write_text('prompt,response\nhi,hello\n"two\nlines",\n')
    (problem,) = validate(locate(tmp_path / "a.csv", cache)).problems
    assert str(problem).startswith('a.csv: "response" is empty (1 row: 2);')


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'{"a": 1}', "holds no array"),
        ("a.json", b"[1, 2", "at item 3|no comma"),
        ("a.json", b"", "begins neither"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.csv", b"a,a\n1,2\n", "two of one name"),
        ("a.csv", b"prompt,response\nhi\na,b\na,b,c\n", r"2 rows that do not have 2 values .*\(lines 2, 4\)"),
        ("a.csv", b'prompt,response\n"hi,there\n', "cannot be read at line"),
        ("a.csv", "prompt,response\nhé,b\n".encode("latin-1"), "not UTF-8"),
        ("a.parquet", b"PAR1 nothing", "not a Parquet file"),
        ("a.zip", b"PK nothing", "cannot be unpacked"),
        ("a.tar.gz", b"nothing", "cannot be unpacked"),
        ("a.xlsx", b"nothing", "not of a kind that is read"),
    ],
)
def test_files_that_are_not_what_they_say(
    tmp_path: Path, cache: DataCache, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidDataset, match=words):
        locate(tmp_path / name, cache)
    assert not list((tmp_path / "cache").glob("[!.]*"))


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
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


def test_a_small_table_that_becomes_a_huge_file_is_refused(
    tmp_path: Path, cache: DataCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 45: one long text in a dictionary, and a million rows that name it."""
    monkeypatch.setattr(convert, "FREE_BYTES", 1 << 20)
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 5_000, pyarrow.int32()), ["x" * 10_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    with pytest.raises(InvalidDataset, match="200 times as large"):
        locate(tmp_path / "a.parquet", cache)
    assert not list(cache.root.glob("rows-*"))


def test_bombs_are_refused(tmp_path: Path) -> None:
    zeros = bytes(4 << 20)
    small = Limits(files=50, ratio=10, free_bytes=1 << 20)
    for archive in (
        zipped(tmp_path / "a.zip", {"train.jsonl": zeros}),
        tarred(tmp_path / "a.tar.gz", {"train.jsonl": zeros}),
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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train.csv", "dev.csv", "test.csv"),
         {"train": ["train.csv"], "validation": ["dev.csv"], "test": ["test.csv"]}),
        (("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"),
         {"train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
          "test": ["test-00000-of-00001.jsonl"]}),
        (("a.jsonl", "b.jsonl", "README.txt", "notes.txt"), {"train": ["a.jsonl", "b.jsonl"]}),
        (("train/x.json", "validation/x.json"), {"train": ["x.json"], "validation": ["x.json"]}),
        (("trainer_notes.jsonl", "constrain.jsonl"), {"train": ["constrain.jsonl", "trainer_notes.jsonl"]}),
    ],
)  # fmt: skip
def test_directories_are_read_by_what_their_files_are_called(
    tmp_path: Path, names: tuple[str, ...], expected: dict[str, list[str]]
) -> None:
    from modelkit.datasets.splits import find_splits

    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_splits(tmp_path, field="dataset.path")
    assert {split: [file.name for file in files] for split, files in found.items()} == expected


def test_texts_are_cut_at_blank_lines_or_else_at_lines(tmp_path: Path, cache: DataCache) -> None:
    (tmp_path / "prose.txt").write_text("One\ntwo\n\n\nthree  \n \nfour\n")
    (tmp_path / "lines.txt").write_text("One\ntwo\nthree\n")
    for name, expected in (("prose", ["One\ntwo", "three", "four"]), ("lines", ["One", "two", "three"])):
        files = locate(tmp_path / f"{name}.txt", cache, reading=Reading(PRETRAINING))
        report = validate(files)
        assert (report.format, list(JsonlDataset(report.train))) == ("text", expected)


def classes(path: Path, rows: list[Any], **options: Any) -> Any:
    return scan(jsonl(path, rows), Reading(CLASSIFICATION, **options))


def test_classes_are_collected(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    report = classes(
        path, [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}, {"sentence": "c", "label": 1}]
    )
    assert (report.format, report.labels, report.problems) == ("classification", {"1": 2, "0": 1}, ())
    assert JsonlDataset(report)[0] == LabelledText("a", "1")
    named = classes(path, [{"text": "a", "label": 0}, {"text": "b", "label": "bad"}], labels=("good", "bad"))
    assert named.labels == {"good": 1, "bad": 1}
    reasons = {
        "ONE_LABEL": [{"text": "a", "label": "x"}] * 3,
        "TOO_MANY_LABELS": [{"text": "a", "label": f"x{number}"} for number in range(30)],
        "WRONG_TYPE": [{"text": "a", "label": 0.5}, {"text": "b", "label": 1}, {"text": "b", "label": 2}],
        "EMPTY_LABEL": [{"text": "a", "label": " "}, {"text": "b", "label": 1}, {"text": "b", "label": 2}],
        "MISSING_COLUMNS": [{"text": "a"}],
    }
    for reason, rows in reasons.items():
        assert [problem.reason for problem in classes(path, rows).problems] == [reason]
    unknown = classes(path, [{"text": "a", "label": "z"}], labels=("x", "y"))
    assert [problem.reason for problem in unknown.problems] == ["UNKNOWN_LABEL"]


def test_classes_that_are_only_evaluated_are_told(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    valid = jsonl(tmp_path / "valid.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "z"}])
    (problem,) = validate(DatasetFiles(train, valid, reading=Reading(CLASSIFICATION))).problems
    assert (problem.file, problem.reason, problem.count) == ("valid.jsonl", "UNKNOWN_LABEL", 1)
    listed = Reading(CLASSIFICATION, labels=("x", "y", "z"))
    assert validate(DatasetFiles(train, valid, reading=listed)).valid


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        (ColumnNames(prompt="q", response="a"), {"q": "Hi", "a": "Hello", "output": "no"}, ["Hi", "Hello"]),
        (ColumnNames(prompt="q", response="a", system="s"), {"q": "Hi", "a": "Ho", "s": "Be"}, ["Be", "Hi", "Ho"]),
        (ColumnNames(system="s"), {"instruction": "Hi", "output": "Ho", "s": "Be"}, ["Be", "Hi", "Ho"]),
        (ColumnNames(messages="m"), {"m": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Ho"}],
                                     "messages": 3}, ["Hi", "Ho"]),
    ],
)  # fmt: skip
def test_named_columns_win(tmp_path: Path, columns: ColumnNames, row: Any, expected: list[str]) -> None:
    """C25."""
    report = scan(jsonl(tmp_path / "a.jsonl", [row]), Reading(columns=columns))
    assert report.problems == ()
    assert [turn["content"] for turn in JsonlDataset(report)[0]] == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ColumnNames(text="t", prompt="p", response="r"), BOTH),
        (ColumnNames(text="t", response="r"), BOTH),
        (ColumnNames(prompt="p"), NEITHER),
        (ColumnNames(response="r"), NEITHER),
    ],
)
def test_columns_that_contradict_each_other(
    tmp_path: Path, cache: DataCache, columns: ColumnNames, message: str
) -> None:
    """C26."""
    with pytest.raises(InvalidDataset) as caught:
        locate(jsonl(tmp_path / "a.jsonl"), cache, reading=Reading(columns=columns))
    assert [(problem.field, problem.message) for problem in caught.value.problems] == [("dataset.columns", message)]


def test_a_named_column_that_is_not_there(tmp_path: Path) -> None:
    report = scan(jsonl(tmp_path / "a.jsonl"), Reading(columns=ColumnNames(text="body")))
    assert [(problem.reason, problem.count) for problem in report.problems] == [("MISSING_COLUMNS", 600)]
    assert '"body"' in report.problems[0].message


def test_what_tools_say_stands_in_its_place(tmp_path: Path) -> None:
    turns = [("human", "Weather?"), ("function_call", '{"f": 1}'), ("observation", "rain"), ("gpt", "It rains")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    report = scan(jsonl(tmp_path / "a.jsonl", [row]))
    assert [turn["role"] for turn in JsonlDataset(report)[0]] == ["user", "assistant", "tool", "assistant"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}]
    parts.append({"role": "assistant", "content": "Ho"})
    report = scan(jsonl(tmp_path / "b.jsonl", [{"messages": parts}]))
    assert JsonlDataset(report)[0][0]["content"] == "Hi you"


@pytest.mark.parametrize(
    ("row", "objective"),
    [
        (ROWS[0], "SUPERVISED"),
        ({"text": "a"}, "SUPERVISED"),
        ({"text": "a", "label": 1}, "CLASSIFICATION"),
        ({"sentence": "a", "label": 1}, "CLASSIFICATION"),
        ({"content": "a"}, "PRETRAINING"),
        ({"wonder": "a"}, "SUPERVISED"),
    ],
)
def test_what_data_is_for_is_guessed(tmp_path: Path, row: Any, objective: str) -> None:
    assert guess_objective(jsonl(tmp_path / "a.jsonl", [row]), ColumnNames()) == objective


def test_a_note_of_origins_that_is_none_is_passed_over(tmp_path: Path, cache: DataCache) -> None:
    """An archive may bring its own."""
    note = json.dumps([{"first": "1", "file": 5, "unit": "row"}]).encode()
    archive = zipped(tmp_path / "a.zip", {"train.jsonl": b"{}\n", "train.jsonl.origin.json": note})
    (problem,) = validate(locate(archive, cache)).problems
    assert (problem.file, list(problem.first_lines)) == ("train.jsonl", [1])


def test_what_lies_in_a_private_folder_is_not_told(tmp_path: Path, cache: DataCache) -> None:
    """Fault 53: a directory that contains the platform's own names nobody's uploads."""
    (tmp_path / "data" / "objects" / "of-somebody-else").mkdir(parents=True)
    jsonl(tmp_path / "data" / "objects" / "of-somebody-else" / "secret.jsonl")
    roots = AllowedRoots([tmp_path / "data"], private=[tmp_path / "data" / "objects"])
    with pytest.raises(InvalidDataset) as caught:
        locate(tmp_path / "data", cache, roots=roots)
    assert "somebody" not in str(caught.value)
    mine = jsonl(tmp_path / "data" / "mine.jsonl")
    assert locate(tmp_path / "data", cache, roots=roots).train == mine


def test_large_files_are_looked_up(tmp_path: Path, cache: DataCache) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "q" * 400, "output": "a"}] * 3000)
    first, second = (validate(DatasetFiles(path), cache).train for _ in range(2))
    assert len(list(cache.root.glob("index-*"))) == 1
    assert list(first.offsets) == list(second.offsets)
    assert (first.sha256, first.shapes, first.size) == (second.sha256, second.shapes, second.size)
    assert JsonlDataset(second)[2999] == JsonlDataset(first)[2999]
    jsonl(path, [{"instruction": "q" * 400, "output": "a"}] * 3001)
    assert validate(DatasetFiles(path), cache).rows == 3001


def test_a_file_whose_time_was_set_back_is_read_again(tmp_path: Path, cache: DataCache) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "q" * 400, "output": "a"}] * 3000)
    before, times = validate(DatasetFiles(path), cache).train, path.stat()
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert validate(DatasetFiles(path), cache).train.sha256 != before.sha256


def test_a_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "cache", limit_bytes=2500)

    def fill(folder: Path) -> None:
        (folder / "content").write_bytes(bytes(1000))

    for number in range(3):
        os.utime(cache.get(f"entry-{number}", fill), (number, number))
    cache.trim()
    assert sorted(path.name for path in cache.root.glob("entry-*")) == ["entry-1", "entry-2"]
    cache.find("entry-1")
    os.utime(cache.get("entry-3", fill), (3, 3))
    cache.trim()
    assert sorted(path.name for path in cache.root.glob("entry-*")) == ["entry-1", "entry-3"]


def test_a_cache_holds_nothing_half_made(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "cache")

    def fail(folder: Path) -> None:
        (folder / "content").write_bytes(bytes(1000))
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cache.get("entry", fail)
    assert cache.find("entry") is None
    assert not list((cache.root / ".incoming").iterdir())
    dead = cache.root / ".incoming" / "dead"
    dead.mkdir()
    os.utime(dead, (0, 0))
    with cache.incoming() as alive:
        os.utime(alive, (0, 0))
        cache.trim()
        assert not dead.exists()
        assert alive.exists()
