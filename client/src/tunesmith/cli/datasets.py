"""What the dataset commands do."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from tunesmith.cli import text
from tunesmith.cli.commands import Session, as_json
from tunesmith.cli.failures import TASK_FAILED
from tunesmith.cli.pages import collect
from tunesmith.cli.transfers import transfer_bar
from tunesmith.cli.wish import OBJECTIVES, local_path
from tunesmith.client import dataset_source
from tunesmith.task.v1 import spec_pb2
from tunesmith.task.v1.dataset_service_pb2 import Dataset, ListDatasetsRequest
from tunesmith.task.v1.spec_pb2 import DatasetSource
from tunesmith.trainer.v1.trainer_service_pb2 import DatasetProblem, ReportDatasetRequest, ReportDatasetResponse

BAR = 40


class DataSession(Session):
    """A session about data."""

    def upload(self, file: Path, name: str, kind: str) -> int:
        """Uploads a file; the exit code says whether it can be trained on."""
        with transfer_bar(self.console, file.name) as progress:
            dataset = self.client.datasets.upload(file, name=name, kind=kind, progress=progress)
        if self.json:
            print(as_json(dataset))
        else:
            print(f"{dataset.id} {text.harmless(dataset.name)} version {dataset.version}, {dataset.samples} rows")
            for problem in dataset.problems:
                print(f"  - {text.harmless(problem)}")
        return TASK_FAILED if dataset.problems else 0

    def list_datasets(self, name: str, kind: str, limit: int) -> None:
        """Prints uploaded datasets, newest first."""

        def page(size: int, token: str) -> tuple[Sequence[Dataset], str]:
            request = ListDatasetsRequest(name=name, type=kind, page_size=size, page_token=token)
            answer = self.client.datasets.list_page(request)
            return answer.datasets, answer.next_page_token

        self.listed(collect(page, limit), _dataset_table, "no datasets")

    def show_dataset(self, dataset_id: str) -> None:
        """Prints everything about one uploaded dataset."""
        dataset = self.client.datasets.get(dataset_id)
        if self.json:
            print(as_json(dataset, indent=2))
            return
        rows = {
            "id": dataset.id,
            "name": f"{dataset.name}, version {dataset.version}",
            "owner": dataset.owner,
            "type": dataset.type,
            "file": f"{dataset.file_name}, {text.size(dataset.size)}",
            "form": dataset.format,
            "rows": str(dataset.samples),
            "sha256": dataset.sha256,
            "uploaded": text.moment(dataset.create_time),
        }
        self.facts(rows)
        for problem in dataset.problems:
            self.console.print(Text(f"  - {text.harmless(problem)}", style="red"))

    def delete_dataset(self, dataset_id: str) -> None:
        """Deletes an uploaded dataset and says so."""
        self.client.datasets.delete(dataset_id)
        self.told_deleted(dataset_id)

    def check(self, data: str, validation: str) -> int:
        """Prints every problem of some data; the exit code."""
        found = self.client.datasets.validate(_source(data, validation))
        if self.json:
            print(as_json(found, indent=2))
        else:
            self.console.print(f"{found.rows} rows can be trained on, form {text.harmless(found.format) or 'unknown'}")
            self._problems(found.problems)
        return 0 if found.valid else TASK_FAILED

    def report(self, data: str, validation: str, base_model: str, length: int, objective: str, rows: int) -> int:
        """Prints the report of some data; the exit code."""
        request = ReportDatasetRequest(
            dataset=_source(data, validation),
            base_model=local_path(base_model),
            max_seq_length=length,
            objective=spec_pb2.Objective.Value(f"OBJECTIVE_{OBJECTIVES[objective].upper()}"),
            preview_rows=rows,
        )
        found = self.client.datasets.report(request)
        if self.json:
            print(as_json(found, indent=2))
        else:
            self._report(found)
        return 0 if found.valid else TASK_FAILED

    def _report(self, found: ReportDatasetResponse) -> None:
        facts = {
            "form": found.format,
            "rows": ", ".join(f"{split} {count}" for split, count in sorted(found.rows.items())),
            "labels": ", ".join(f"{label} {count}" for label, count in sorted(found.labels.items())),
            "duplicates": f"{found.exact_duplicates} exact, {found.near_duplicates} near",
            "in two splits": str(found.overlapping_rows),
            "sha256": found.sha256,
        }
        if found.HasField("lengths"):
            lengths = found.lengths
            facts["tokens"] = (
                f"mean {lengths.mean:.0f}, median {lengths.median}, 95 % up to {lengths.p95}, longest {lengths.max}"
            )
            facts["cut"] = f"{lengths.truncated_share:.1%} of rows, {lengths.masked_share:.1%} lose their whole reply"
        self.facts(facts)
        if found.HasField("lengths"):
            self._histogram(found.lengths.upper, found.lengths.rows)
        for sample in found.samples:
            line = Text("> ")
            for piece in sample.pieces:
                shown = text.harmless(piece.text.replace("\n", "\\n"))
                line.append(f"«{shown}»" if piece.trained else shown, style="bold" if piece.trained else "dim")
            self.console.print(line)
        self._problems(found.problems)
        for advice in found.advice:
            self.console.print(Text(f"  * {text.harmless(advice)}", style="yellow"))

    def _histogram(self, upper: Iterable[int], rows: Iterable[int]) -> None:
        bins = list(itertools.dropwhile(lambda item: item[1] == 0, zip(upper, rows, strict=False)))
        most = max((count for _, count in bins), default=0)
        table = Table(Column("tokens below", justify="right"), Column("rows", justify="right"), "", box=None)
        for limit, count in bins:
            table.add_row(str(limit), str(count), "#" * round(BAR * count / most) if most else "")
        self.console.print(table)

    def _problems(self, problems: Iterable[DatasetProblem]) -> None:
        for problem in problems:
            lines = ", ".join(map(str, problem.first_lines))
            more = ", ..." if problem.count > len(problem.first_lines) else ""
            count = (
                f"{problem.count} {'line' if problem.count == 1 else 'lines'}" if lines else f"{problem.count} times"
            )
            where = f"({count}: {lines}{more})" if lines else f"({count})"
            words = f"{problem.file}: {problem.message} {where}; {problem.hint}"
            self.console.print(Text(f"  - {text.harmless(words)}", style="red"))


def _source(data: str, validation: str) -> DatasetSource:
    source = dataset_source(data)
    source.validation_path = local_path(validation)
    return source


def _dataset_table(found: Iterable[Dataset]) -> Table:
    names = ("name", "version", "type", "form", "rows", "size", "uploaded", "")
    table = Table(Column("id", no_wrap=True, min_width=26), *names, box=None, pad_edge=False)
    for item in found:
        table.add_row(
            item.id,
            Text(text.harmless(item.name)),
            str(item.version),
            Text(text.harmless(item.type)),
            item.format,
            str(item.samples),
            text.size(item.size),
            text.moment(item.create_time),
            Text(f"{len(item.problems)} problems", style="red") if item.problems else "",
        )
    return table
