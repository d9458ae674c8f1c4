"""Datasets are checked and shown over the wire, whoever made them, without harm to others."""

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from modelkit.datasets import DataCache, DatasetFiles, convert, locate
from servicekit.errors import InvalidArgument, ResourceExhausted
from servicekit.grpc_client import bearer
from services.trainer_service.tests.bench import MakeSpec
from services.trainer_service.tests.trainer_stub import Stub, Uploads, check, peer, stub, turns, uploads, write
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from workerkit.datasets import DatasetChecks
from workerkit.turns import Limits, Turns

__all__ = ["peer", "stub", "turns", "uploads"]


async def test_datasets_are_checked_and_shown(stub: Stub, tmp_path: Path) -> None:
    good = write(tmp_path / "data" / "good", *({"instruction": f"q{n}", "output": f"a{n}"} for n in range(8)))
    answer = await stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=good))
    assert (answer.valid, answer.rows, answer.format) == (True, 8, "instruction")
    preview = await stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=good))
    assert [[(m.role, m.content) for m in sample.messages] for sample in preview.samples] == [
        [("user", f"q{n}"), ("assistant", f"a{n}")] for n in range(5)
    ]
    preview = await stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=good, rows=2))
    assert len(preview.samples) == 2
    bad = write(tmp_path / "data" / "bad", {"instruction": "q", "output": "a"}, "not json", {"question": 1}, "{")
    answer = await stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=bad))
    assert (answer.valid, answer.rows) == (False, 1)
    problems = {problem.reason: problem for problem in answer.problems}
    assert (problems["NOT_JSON"].count, list(problems["NOT_JSON"].first_lines)) == (2, [2, 4])
    assert all(problem.file == "train.jsonl" and problem.hint for problem in answer.problems)


async def test_other_kinds_of_data_are_checked_and_shown(stub: Stub, tmp_path: Path) -> None:
    """Texts and classes; the columns that a user names."""
    folder = tmp_path / "data" / "classes"
    rows = [{"q": f"text {n}", "kind": ["good", "bad"][n % 2]} for n in range(4)]
    source = write(folder, *rows)
    source.columns.CopyFrom(spec_pb2.DatasetColumns(prompt="q", label="kind"))
    answer = await stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=source))
    assert (answer.valid, answer.format, answer.rows) == (True, "classification", 4)
    preview = await stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=source, rows=1))
    assert [(m.role, m.content) for m in preview.samples[0].messages] == [("text", "text 0"), ("label", "good")]
    (folder / "book.txt").write_text("One.\n\nTwo.\n")
    text = spec_pb2.DatasetSource(path=str(folder / "book.txt"))
    preview = await stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=text))
    assert [sample.messages[0].content for sample in preview.samples] == ["One.", "Two."]


async def test_a_report_without_a_model_has_no_tokens(stub: Stub, tmp_path: Path) -> None:
    row = {"instruction": "Say it", "output": "It is said"}
    source = write(tmp_path / "data" / "twice", row, row)
    report = await stub.ReportDataset(trainer.ReportDatasetRequest(dataset=source), timeout=50)
    assert (report.valid, dict(report.rows), report.exact_duplicates) == (True, {"train": 2}, 1)
    assert not report.HasField("lengths")
    assert any("1000" in text for text in report.advice)


async def test_datasets_that_cannot_be_read(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "data" / "empty").mkdir()
    paths = ("/etc", str(tmp_path / "data" / "missing"), str(tmp_path / "data" / "empty"), f"{tmp_path}/data/../secret")
    for path in paths:
        source = spec_pb2.DatasetSource(path=path, validation_path="/etc/passwd")
        with pytest.raises(InvalidArgument) as caught:
            await stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=source))
        fields = {problem.field for problem in caught.value.problems}
        assert "dataset.validation_path" in fields


def test_a_dataset_is_read_once_until_it_changes(tmp_path: Path) -> None:
    class Counting(DatasetChecks):
        reads = 0

        def _read(self, files: DatasetFiles) -> Any:
            self.reads += 1
            return super()._read(files)

    folder = tmp_path / secrets.token_hex(4)
    write(folder, {"instruction": "q", "output": "a"})
    cache = DataCache(tmp_path / "cache")
    checks = Counting(cache)
    assert checks.check(locate(folder, cache)).rows == 1
    assert checks.check(locate(folder, cache)).rows == 1
    assert checks.reads == 1
    write(folder, {"instruction": "q", "output": "a"}, {"instruction": "r", "output": "b"})
    assert checks.check(locate(folder, cache)).rows == 2
    assert checks.reads == 2


async def test_a_file_that_would_fill_the_memory_is_refused_and_the_service_goes_on(
    stub: Stub, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 45: a Parquet file of a few hundred bytes with a text of 64 MiB."""
    monkeypatch.setattr(convert, "MEMORY_BYTES", 48 << 20)
    table, path = pyarrow.table({"text": ["a" * (64 << 20)]}), tmp_path / "data" / "bomb.parquet"
    pyarrow.parquet.write_table(table, path, compression="brotli", use_dictionary=False, write_statistics=False)
    source = spec_pb2.DatasetSource(path=str(path))
    for call in (
        stub.ValidateDataset(trainer.ValidateDatasetRequest(dataset=source)),
        stub.PreviewDataset(trainer.PreviewDatasetRequest(dataset=source)),
        stub.ReportDataset(trainer.ReportDatasetRequest(dataset=source)),
    ):
        with pytest.raises(InvalidArgument, match="needs more than 48 MiB of memory to read, or is damaged"):
            await call
    problems = await check(stub, make_spec({}, dataset=source))
    assert "needs more than 48 MiB" in problems["finetune.dataset.path"]


class TestACrowd:
    """Fault 56: checks that take long wait in a queue that has an end."""

    @pytest.fixture
    def turns(self) -> Turns:
        return Turns(Limits(at_once=2, of_user=1, waiting_of_user=2))

    async def test_is_told_to_come_back(self, stub: Stub, turns: Turns, uploads: Uploads, tmp_path: Path) -> None:
        write(tmp_path / "cache", {"instruction": "q", "output": "a"})
        uploads.file = tmp_path / "cache" / "train.jsonl"
        uploads.gate.clear()
        request = trainer.ValidateDatasetRequest(dataset=spec_pb2.DatasetSource(dataset_id="d1"))
        calls = [stub.ValidateDataset(request, metadata=bearer("owner"), timeout=50) for _ in range(6)]
        pending = [asyncio.ensure_future(call) for call in calls]
        try:
            done: set[Any] = set()
            while len(done) < 3:
                finished, _ = await asyncio.wait(set(pending) - done, return_when=asyncio.FIRST_COMPLETED)
                done |= finished
            assert {type(call.exception()) for call in done} == {ResourceExhausted}
            assert {call.exception().metadata["retry_after_seconds"] for call in done} == {"5"}
            assert (await stub.ListDevices(trainer.ListDevicesRequest())).devices
        finally:
            uploads.gate.set()
        answers = await asyncio.gather(*(call for call in pending if call not in done))
        assert [answer.rows for answer in answers] == [1, 1, 1]
