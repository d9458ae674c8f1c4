"""Every kind of file and directory becomes the same rows (C8, C9, C15, F25, M34, faults 44 and 45)."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from modelkit.datasets import PRETRAINING, DataCache, JsonlDataset, Reading, convert, locate, validate
from modelkit.errors import InvalidDataset
from modelkit.paths import AllowedRoots
from services.modelkit.tests.dataset_files import CONVERSATIONS, ROWS, cache, conversations, jsonl, write_csv

__all__ = ["cache"]


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": jsonl,
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "b.json": lambda path: path.write_text(json.dumps({"version": {"of": ["x"]}, "data": ROWS, "more": 1})),
    "c.json": jsonl,
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "semicolons/a.csv": lambda path: write_csv(path, ";"),
    "tabs/a.csv": lambda path: write_csv(path, "\t"),
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


def test_commas_of_the_first_line_win_over_other_separators(tmp_path: Path, cache: DataCache) -> None:
    (tmp_path / "a.csv").write_text("prompt,response,a;b;c;d\nhi,hello,x\n")
    files = locate(tmp_path / "a.csv", cache)
    assert conversations(files) == [[("user", "hi"), ("assistant", "hello")]]


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
