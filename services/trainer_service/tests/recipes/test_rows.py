"""Rows of a job: found again in the cache, cut into windows, split, and learnt in every objective."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkit.chat import Encoded
from modelkit.datasets import DataCache, FileReport, scan
from modelkit.tokenised import TokenFile
from services.trainer_service.tests.recipes.conftest import CPU, JobFactory, Recorder, run
from tests.support.waiting import wait_until
from trainer_service.recipes.data_setup import prepare_data
from trainer_service.recipes.rows import DocumentRows, EncodedRows, Store


class CountingEncoder:
    """Row n becomes n + 1 tokens, all learnt."""

    identity = ("counting",)

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, rows: Sequence[int]) -> list[Encoded]:
        self.encoded += len(rows)
        ids = [np.full(number + 1, number, dtype=np.int32) for number in rows]
        return [Encoded(row, row.copy(), truncated=False) for row in ids]


def rows_in(cache: DataCache) -> tuple[EncodedRows, CountingEncoder]:
    encoder = CountingEncoder()
    return EncodedRows(list(range(600)), encoder, Store(cache, "tokens", report_in(cache))), encoder


def report_in(cache: DataCache) -> FileReport:
    """Of a file beside the cache."""
    folder = next(parent for parent in cache.root.parents if parent.is_dir())
    path = folder / f"{cache.root.name}.jsonl"
    if not path.exists():
        path.write_text('{"prompt": "q", "response": "a"}\n')
    return scan(path)


def test_rows_of_a_file_that_was_changed_are_not_kept_for_others(tmp_path: Path) -> None:
    """They would be found by the content that the file had when it was checked, which may be another user's too."""
    cache = DataCache(tmp_path / "cache")
    rows, _ = rows_in(cache)
    source = tmp_path / "cache.jsonl"
    times = source.stat()
    source.write_text(source.read_text().replace("a", "b"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match="was changed"):
        rows.fill()
    assert cache.find("tokens") is None


def test_rows_are_tokenised_once_and_then_found(tmp_path: Path) -> None:
    rows, encoder = rows_in(DataCache(tmp_path))
    assert [len(row.input_ids) for row in rows.get([3, 5, 3])] == [4, 6, 4]
    assert encoder.encoded == 2
    rows.fill()
    assert encoder.encoded == 602
    again, other = rows_in(DataCache(tmp_path))
    assert [row.input_ids.tolist() for row in again.get([2])] == [[2, 2, 2]]
    assert again.lengths([599, 0]).tolist() == [600, 1]
    assert (again.counts.rows, other.encoded) == (1, 0)


def test_rows_are_prepared_in_the_background_and_by_others(tmp_path: Path) -> None:
    rows, encoder = rows_in(DataCache(tmp_path))
    waiting, other = rows_in(DataCache(tmp_path))
    waiting.get([1])
    rows.prepare(0.0)
    wait_until((tmp_path / "tokens").is_dir)
    for _ in range(40):
        waiting.get([1])
    before = other.encoded
    assert len(waiting.get(range(600))) == 600
    assert other.encoded == before
    assert encoder.encoded == 600


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rows, _ = rows_in(DataCache(tmp_path / "file" / "below"))
    rows._fill_later(0.0)
    assert len(rows.get([7])[0].input_ids) == 8


def test_documents_are_cut_into_windows_that_lose_nothing() -> None:
    file = TokenFile.of([CountingEncoder().encode([0, 9, 4])])
    rows = DocumentRows(file, np.array([0, 1, 2]), window=4)
    assert rows.lengths(range(len(rows))).tolist() == [1, 4, 4, 2, 4, 1]
    assert [row.input_ids.tolist() for row in rows.get([3, 5])] == [[9, 9], [4]]
    assert len(DocumentRows(file, np.array([2]), window=100)) == 1
    assert len(DocumentRows(file, np.zeros(0, np.int64), window=4)) == 0


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pretraining_learns_every_token(jobs: JobFactory, tmp_path: Path) -> None:
    """M4, M34."""
    jobs.train_file = written(tmp_path / "a.jsonl", [{"text": f"Once upon a time {n}. " * 30} for n in range(6)])
    job = jobs(language_model={"objective": "OBJECTIVE_PRETRAINING", "max_seq_length": 32})
    data = prepare_data(job, Recorder(), CPU)
    assert len(data.rows) > 6
    tokens = np.concatenate([row.input_ids for row in data.rows.get(range(len(data.rows)))])
    text = data.tokenizer.decode(tokens)
    assert "Once upon a time 5. Once" in text
    assert int((tokens == data.tokenizer.eos_token_id).sum()) == 6
    assert all((row.labels == row.input_ids).all() for row in data.rows.get(range(len(data.rows))))


def test_classes_are_numbered_as_the_data_or_the_user_says(jobs: JobFactory, tmp_path: Path) -> None:
    jobs.train_file = written(
        tmp_path / "a.jsonl", [{"sentence": f"It is {n}", "label": ["even", "odd"][n % 2]} for n in range(8)]
    )
    objective = {"objective": "OBJECTIVE_CLASSIFICATION"}
    data = prepare_data(jobs(language_model=objective), Recorder(), CPU)
    assert data.labels == ("even", "odd")
    assert [row.label for row in data.rows.get([0, 1])] == [0, 1]
    data = prepare_data(jobs(language_model={**objective, "labels": ["odd", "even"]}), Recorder(), CPU)
    assert [row.label for row in data.rows.get([0, 1])] == [1, 0]


def test_rows_are_kept_for_a_test_and_stored_with_the_model(jobs: JobFactory) -> None:
    """F37: 80/15/5."""
    job = jobs(language_model={"eval_ratio": 0.15, "test_ratio": 0.05}, training={"eval_strategy": "STEPS"})
    events = run(job)
    assert events.kinds()[-1] == "done"
    kept = [json.loads(line) for line in (job.output_dir / "test.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in jobs.train_file.read_text().splitlines()]
    assert len(kept) == 1
    assert all(row in rows for row in kept)


def test_a_second_run_finds_what_the_first_tokenised(jobs: JobFactory, tmp_path: Path) -> None:
    row = {"instruction": "Say " * 100, "output": "It is said. " * 20}
    jobs.train_file = written(tmp_path / "large.jsonl", [{**row, "input": str(n)} for n in range(600)])
    cache = {"cache_dir": str(tmp_path / "cache"), "language_model": {"packing": True, "max_seq_length": 512}}
    first = prepare_data(jobs(**cache), Recorder(), CPU)
    (stored,) = (tmp_path / "cache").glob("tokens-*")
    second = prepare_data(jobs(**cache), Recorder(), CPU)
    assert [stored] == list((tmp_path / "cache").glob("tokens-*"))
    assert second.rows.get([9])[0].input_ids.tolist() == first.rows.get([9])[0].input_ids.tolist()
    other = {"cache_dir": str(tmp_path / "cache"), "language_model": {"packing": True, "max_seq_length": 64}}
    with pytest.raises(Exception, match="max_seq_length"):
        prepare_data(jobs(**other), Recorder(), CPU)


def test_named_columns_reach_the_recipe(jobs: JobFactory, tmp_path: Path) -> None:
    """C25."""
    jobs.train_file = written(tmp_path / "a.jsonl", [{"q": f"Say {n}", "a": f"{n} it is"} for n in range(4)])
    folder = jobs.directory()
    content = json.loads((folder / "job.json").read_text())
    content["spec"]["dataset"] = {"path": "x", "columns": {"prompt": "q", "response": "a"}}
    (folder / "job.json").write_text(json.dumps(content))
    data = prepare_data(type(jobs()).load(folder), Recorder(), CPU)
    assert "Say 2" in data.tokenizer.decode(data.rows.get([2])[0].input_ids)


def test_another_tokenizer_must_fit_the_model(jobs: JobFactory, tiny_models: dict[str, Path]) -> None:
    job = jobs(tokenizer_dir=str(tiny_models["llama"]))
    assert prepare_data(job, Recorder(), CPU).tokenizer.name_or_path == str(tiny_models["llama"])


def test_a_model_without_a_tokenizer_is_trained_with_another(jobs: JobFactory, tmp_path: Path) -> None:
    """M28: the finished model has the tokenizer that it was trained with."""
    bare, tokenizer = tmp_path / "bare", tmp_path / "tokenizer"
    shutil.copytree(jobs.model_dir, bare)
    tokenizer.mkdir()
    for path in (*bare.glob("*token*"), *bare.glob("chat_template*")):
        path.rename(tokenizer / path.name)
    job = jobs(model_dir=str(bare), tokenizer_dir=str(tokenizer), training={"max_steps": 2})
    assert run(job).kinds()[-1] == "done"
    assert (job.output_dir / "tokenizer.json").is_file()
