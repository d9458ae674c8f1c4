"""What the export commands do."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from tunesmith.cli import text
from tunesmith.cli.commands import Session, as_json
from tunesmith.cli.failures import UsageProblem
from tunesmith.cli.pages import collect
from tunesmith.cli.results import result_facts, result_table, tell_fetched
from tunesmith.cli.transfers import transfer_bar
from tunesmith.client import export_request
from tunesmith.client.export import FORMATS
from tunesmith.export.v1.export_service_pb2 import (
    Artifact,
    Export,
    Format,
    ListExportsRequest,
    PackageTemplate,
    ParityCheck,
)
from tunesmith.task.v1.task_pb2 import Task

_WORDS = {form: word for word, form in FORMATS.items()}


class ExportSession(Session):
    """A session about exports."""

    def export(
        self,
        task_id: str,
        form: str,
        types: list[str],
        *,
        checkpoint: int,
        output_dir: str,
        modelfile: bool | None,
        importance: str,
        name: str | None,
    ) -> Task:
        """Starts an export and says so."""
        request = export_request(
            name or text.dated("export"),
            task_id,
            form,
            [word.strip() for item in types for word in item.split(",") if word.strip()],
            checkpoint_step=checkpoint,
            output_dir=output_dir,
            modelfile=modelfile,
            importance_dataset=importance,
        )
        return self.create(request)

    def watch_files(self, task_id: str, output: Path | None) -> int:
        """Shows an export until it ends, and its files and checks; fetches them if a place is named; the exit code."""
        code = self.watch(task_id)
        if code == 0 and not (self.json and output is not None):
            self.show_export(task_id, indent=None)
        if code == 0 and output is not None:
            self.download(task_id, "", output)
        return code

    def list_exports(self, limit: int) -> None:
        """Prints exports, newest first."""

        def page(size: int, token: str) -> tuple[Sequence[Export], str]:
            answer = self.client.exports.list_page(ListExportsRequest(page_size=size, page_token=token))
            return answer.exports, answer.next_page_token

        self.listed(collect(page, limit), _export_table, "no exports")

    def show_export(self, task_id: str, indent: int | None = 2) -> None:
        """Prints the files of an export and its checks, as JSON on one line without an indent."""
        found = self.client.exports.get(task_id)
        if self.json:
            print(as_json(found, indent))
            return
        checkpoint = str(found.spec.checkpoint_step or "final model")
        self.facts(result_facts(found, {"checkpoint": checkpoint, "form": _form(found)}))
        if found.artifacts:
            self.console.print(_artifact_table(list(found.artifacts)))
        if found.checks:
            self.console.print(_check_table(list(found.checks)))

    def list_formats(self) -> None:
        """Prints the forms and types that a model can be exported to."""
        self.listed(list(self.client.exports.formats()), _format_table, "no formats")

    def list_templates(self) -> None:
        """Prints the usual packages."""
        self.listed(list(self.client.exports.templates()), _template_table, "no templates")

    def download(self, task_id: str, name: str, output: Path) -> None:
        """Fetches a file of an export, or all of them, and says where each lies."""
        found = self.client.exports.get(task_id)
        names = [name] if name else [item.name for item in found.artifacts]
        if len(names) > 1:
            if output.exists() and not output.is_dir():
                raise UsageProblem(f"-o {output}: there are {len(names)} files; name a directory, or one file")
            output.mkdir(parents=True, exist_ok=True)
        for item in names or [""]:
            path = self._download(task_id, item, output)
            tell_fetched(item, path, json=self.json)

    def _download(self, task_id: str, name: str, output: Path) -> Path:
        with transfer_bar(self.console, name) as progress:
            return self.client.exports.download(task_id, name, output, progress=progress)


def _form(export: Export) -> str:
    types = " ".join(export.spec.quantizations)
    return " ".join(word for word in (_WORDS.get(export.spec.format, ""), types) if word)


def _export_table(found: list[Export]) -> Table:
    return result_table(found, {"form": _form, "files": lambda item: str(len(item.artifacts) or "")})


def _artifact_table(found: list[Artifact]) -> Table:
    table = Table("file", "size", "sha256", box=None, pad_edge=False)
    for item in found:
        table.add_row(Text(text.harmless(item.name)), text.size(item.size), Text(text.harmless(item.sha256)))
    return table


def _check_table(found: list[ParityCheck]) -> Table:
    table = Table("check", "file", "measured", "allowed", "", box=None, pad_edge=False)
    for item in found:
        table.add_row(
            Text(text.harmless(item.name)),
            Text(text.harmless(item.artifact)),
            text.number(item.value),
            text.number(item.limit),
            Text("passed", style="green") if item.passed else Text(text.harmless(item.text) or "failed", style="red"),
        )
    return table


def _format_table(found: list[Format]) -> Table:
    table = Table("form", "type", "bits", "", box=None, pad_edge=False)
    for item in found:
        words = text.harmless(item.description) + ("" if item.available else " (not in this version)")
        bits = f"{item.bits_per_weight:g}" if item.bits_per_weight else ""
        table.add_row(_WORDS.get(item.format, ""), Text(text.harmless(item.quantization)), bits, Text(words))
    return table


def _template_table(found: list[PackageTemplate]) -> Table:
    table = Table("template", "options", "", box=None, pad_edge=False)
    for item in found:
        options = f"--format {_WORDS.get(item.format, '')}" + "".join(f" --type {kind}" for kind in item.quantizations)
        words = text.harmless(item.description) + (" (the first choice)" if item.is_default else "")
        table.add_row(Text(text.harmless(item.name)), Text(text.harmless(options)), Text(words))
    return table
