"""Datasets are checked line by line before training and read back as conversations (F24, F25, T13, T14)."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkit.datasets import DataCache, DatasetFiles, JsonlDataset, locate, preview, scan, validate
from modelkit.datasets.lines import read_lines
from modelkit.errors import InvalidDataset
from modelkit.paths import AllowedRoots

GOOD = {"instruction": "Say yes", "input": "", "output": "Yes"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def find(path: Path, **options: Any) -> DatasetFiles:
    return locate(path, DataCache(path.parent / "cache"), **options)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (GOOD, [("user", "Say yes"), ("assistant", "Yes")]),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, [("user", "Add\n1 2"), ("assistant", "3")]),
        ({"instruction": "Hi", "response": "Hello"}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"prompt": "Hi", "completion": "Hello"}, [("user", "Hi"), ("assistant", "Hello")]),
        (
            {"system": "Be kind", "instruction": "Hi", "output": "Hello"},
            [("system", "Be kind"), ("user", "Hi"), ("assistant", "Hello")],
        ),
        ({"messages": TURNS}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"conversations": TURNS}, [("user", "Hi"), ("assistant", "Hello")]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            [("user", "Hi"), ("assistant", "Hello")],
        ),
        (
            {"messages": [{"role": "system", "content": "Be kind"}, *TURNS]},
            [("system", "Be kind"), ("user", "Hi"), ("assistant", "Hello")],
        ),
    ],
)
def test_every_spelling_becomes_the_same_conversation(tmp_path: Path, row: Any, expected: Any) -> None:
    report = scan(write(tmp_path / "train.jsonl", row))
    assert report.problems == ()
    assert [(turn["role"], turn["content"]) for turn in JsonlDataset(report)[0]] == expected


@pytest.mark.parametrize(
    ("line", "reason", "hint"),
    [
        (b'{"instruction": "a"', "NOT_JSON", "JSON Lines"),
        (b"[1, 2]", "NOT_AN_OBJECT", "JSON array"),
        (b'"text"', "NOT_AN_OBJECT", "object"),
        (b'{"instruction": "\xff\xfe", "output": "b"}', "NOT_UTF8", "UTF-8"),
        ({"question": "a", "reply": "b"}, "MISSING_COLUMNS", '"question", "reply"'),
        ({"text": "a"}, "MIXED_FORMATS", "one format"),
        ({"instruction": "a", "output": 3}, "WRONG_TYPE", "strings"),
        ({"instruction": "a", "output": None}, "WRONG_TYPE", "strings"),
        ({"instruction": "a", "input": ["x"], "output": "b"}, "WRONG_TYPE", "strings"),
        ({"instruction": "a", "output": " \n"}, "EMPTY_REPLY", "reply"),
        ({"instruction": "", "input": "", "output": "b"}, "EMPTY_PROMPT", "instruction"),
        ({"messages": []}, "WRONG_TYPE", "two messages"),
        ({"messages": ["a"]}, "WRONG_TYPE", "role, content"),
        ({"messages": [{"role": "user", "content": [1]}]}, "WRONG_TYPE", "role and content"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "UNKNOWN_ROLE", "system, user, assistant and tool"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "ROLE_ORDER", "before a reply"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [1]}]}, "TOOL_CALLS", "content"),
        ({"messages": TURNS[::-1]}, "ROLE_ORDER", "in turn"),
        ({"messages": TURNS[:1]}, "ROLE_ORDER", "reply"),
        ({"messages": [TURNS[0], *TURNS]}, "ROLE_ORDER", "in turn"),
        ({"messages": [*TURNS, {"role": "system", "content": "a"}]}, "ROLE_ORDER", "in turn"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": ""}]}, "EMPTY_REPLY", "reply"),
        (b'{"instruction": "a", "output": "' + b"x" * 2000 + b'"}', "LINE_TOO_LONG", "one row per line"),
    ],
)
def test_a_bad_line_is_named_with_a_hint(tmp_path: Path, line: Any, reason: str, hint: str) -> None:
    first = {"messages": TURNS} if isinstance(line, dict) and "messages" in line else GOOD
    report = scan(write(tmp_path / "train.jsonl", first, line, first), max_line_bytes=1000)
    assert report.rows == 2
    (problem,) = report.problems
    assert (problem.reason, problem.count, problem.first_lines) == (reason, 1, [2])
    assert hint in problem.hint
    assert "train.jsonl" in str(problem)
    assert len(JsonlDataset(report)[1]) == 2


def test_all_kinds_are_counted_in_one_pass(tmp_path: Path) -> None:
    rows: list[Any] = [GOOD, *[b"nonsense"] * 7, {"messages": TURNS}, {"instruction": "a"}, GOOD, {"messages": TURNS}]
    report = scan(write(tmp_path / "train.jsonl", *rows))
    assert report.rows == 2
    assert {problem.reason: (problem.count, problem.first_lines) for problem in report.problems} == {
        "NOT_JSON": (7, [2, 3, 4, 5, 6]),
        "MIXED_FORMATS": (2, [9, 12]),
        "MISSING_COLUMNS": (1, [10]),
    }


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_a_problem(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    assert [problem.reason for problem in scan(tmp_path / "train.jsonl").problems] == ["EMPTY_FILE"]


def test_byte_order_mark_blank_lines_and_missing_last_newline_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\n" + json.dumps(GOOD).encode())
    report = scan(path)
    assert (report.rows, report.problems) == (2, ())
    assert [turns[1]["content"] for turns in JsonlDataset(report)] == ["Yes", "Yes"]


def test_utf16_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes((json.dumps(GOOD) + "\n").encode("utf-16"))
    assert "NOT_UTF8" in [problem.reason for problem in scan(path).problems]


def test_kinds_of_problems_are_bounded(tmp_path: Path) -> None:
    report = scan(
        write(tmp_path / "train.jsonl", *({"messages": [{"role": f"r{n}", "content": "a"}]} for n in range(200)))
    )
    assert len(report.problems) == 51
    assert sum(problem.count for problem in report.problems) == 200


@settings(max_examples=50, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=30), limit=st.integers(1, 30)
)
def test_lines_are_found_where_they_lie(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], limit: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a"
    content = b"\n".join(lines)
    path.write_bytes(content)
    if content.startswith(b"\xef\xbb\xbf"):
        return
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    found = list(read_lines(path, limit))
    assert [line for _, line in found] == [line if len(line) <= limit else None for line in expected]
    for offset, line in found:
        assert line is None or content[offset : offset + len(line)] == line


def test_an_enormous_line_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD).encode() + b"\n")
        file.truncate(400 << 20)  # a sparse line of zeros
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = scan(path)
    assert [problem.reason for problem in report.problems] == ["LINE_TOO_LONG"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_random_access_and_limits(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(10)]
    report = scan(write(tmp_path / "train.jsonl", *rows))
    dataset = JsonlDataset(report, max_rows=4)
    assert len(dataset) == 4
    assert dataset[-1][1]["content"] == "a3"
    assert [turns[0]["content"] for turns in dataset[1:3]] == ["q1", "q2"]
    with pytest.raises(IndexError):
        dataset[4]


def test_a_directory_holds_train_and_optional_splits(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        write(tmp_path / f"{name}.jsonl", GOOD)
    files = find(tmp_path)
    assert [file and file.name for file in (files.train, files.validation, files.test)] == [
        "train.jsonl",
        "valid.jsonl",
        "test.jsonl",
    ]
    write(tmp_path / "valid.jsonl", GOOD, b"bad")
    report = validate(files)
    assert not report.valid
    assert [(problem.file, problem.reason) for problem in report.problems] == [("valid.jsonl", "NOT_JSON")]
    other = write(tmp_path / "other.jsonl", GOOD)
    assert find(tmp_path, validation=other).validation == other


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(InvalidDataset, match=r"no train\.jsonl; found: notes\.md"):
        find(tmp_path)
    with pytest.raises(InvalidDataset, match="does not exist"):
        find(tmp_path / "gone.jsonl")


def test_a_link_out_of_the_roots_is_refused(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.jsonl", GOOD)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "train.jsonl").symlink_to(outside)
    with pytest.raises(InvalidDataset, match="leads out"):
        find(inside, roots=AllowedRoots([inside]))


def test_preview_skips_bad_lines(tmp_path: Path) -> None:
    files = find(write(tmp_path / "a.jsonl", b"bad", GOOD, GOOD, GOOD))
    assert len(preview(files, 2)) == 2
    assert preview(files, 0) == []
