"""Training rows of a task, for importance matrices and comparisons."""

import asyncio

from modelkit import datasets
from modelkit.datasets import LabelledText, Row
from modelkit.errors import ModelkitError
from modelkit.paths import AllowedRoots
from servicekit.errors import TunesmithError
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit.datasets import DatasetChecks, as_what_it_is, first_reading_of, reading_of
from workerkit.turns import InThread

ROWS = 100

Messages = list[dict[str, str]]


class NoRows(Exception):
    """There are no rows that can be read; the message says why."""


class TrainingRows:
    """Reads rows of datasets wherever they lie."""

    def __init__(self, roots: AllowedRoots, known: DatasetChecks, in_thread: InThread = asyncio.to_thread) -> None:
        self._roots = roots
        self._datasets = known
        self._in_thread = in_thread

    async def read(
        self, spec: spec_pb2.ExportSpec, source: task_service_pb2.TaskSource, *, rows: int = ROWS, token: str = ""
    ) -> list[Messages]:
        """The first rows of the dataset that the export names, else of the task's, as messages.

        Plain text is in the role "text". token is that of a user who asks; without it the service reads by its own
        right. Raises NoRows.
        """
        try:
            return await self._in_thread(self._read, spec, source, rows, token)
        except (ModelkitError, TunesmithError, OSError) as error:
            raise NoRows(f"the rows of the dataset cannot be read: {error}") from error

    def _read(
        self, spec: spec_pb2.ExportSpec, source: task_service_pb2.TaskSource, rows: int, token: str
    ) -> list[Messages]:
        if spec.HasField("importance_dataset"):
            named, field = spec.importance_dataset, "export.importance_dataset"
            reading = first_reading_of(named)
            files = as_what_it_is(self._datasets.find(named, self._roots, reading, where=field, token=token))
        else:
            finetune = source.spec.finetune
            reading = reading_of(finetune.dataset, finetune.language_model.objective)
            files = self._datasets.find(finetune.dataset, self._roots, reading, where="finetune.dataset", token=token)
        found = [_messages(row) for row in datasets.preview(files, rows)]
        if not found:
            raise NoRows("the dataset has no rows")
        return found


def _messages(row: Row) -> Messages:
    if isinstance(row, list):
        return [{"role": turn["role"], "content": turn["content"]} for turn in row]
    return [{"role": "text", "content": row.text if isinstance(row, LabelledText) else row}]
