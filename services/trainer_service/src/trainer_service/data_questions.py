"""Questions about data that need a tokenizer or arithmetic: a child of the fork server answers them.

The service itself never loads a training library, and what comes with a model (its chat template) runs apart from it.
"""

import asyncio
import contextlib
import json
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelkit.datasets import DatasetFiles, key_of
from modelkit.datasets.index import stamp
from servicekit.errors import InvalidArgument, Problem, Unavailable
from trainer_service.checks import CheckedSpec
from trainer_service.data_answers import ANSWER, QUESTION
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from workerkit.fork_launcher import ForkLauncher
from workerkit.launcher import LaunchError

logger = logging.getLogger(__name__)

ENTRY = "trainer_service.data_answers:run"
REPORT_SECONDS, TOKEN_SECONDS = 55.0, 20.0
CHECK_SECONDS, LOOK_SECONDS = 15.0, 5.0
DEFAULT_LENGTH, DEFAULT_PREVIEW = 512, 3
REMEMBERED = 1024
MOST_CHILDREN = 6  # each holds a tokenizer and a dataset's index
TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model")  # of a model directory, all but its weights


class DataQuestions:
    """Asks children, a few at a time."""

    def __init__(self, launcher: ForkLauncher) -> None:
        self._launcher = launcher
        self._places = asyncio.Semaphore(MOST_CHILDREN)
        self._sound: OrderedDict[str, None] = OrderedDict()  # questions in whose data nothing was found

    async def report(
        self, request: trainer.ReportDatasetRequest, files: DatasetFiles, model_dir: Path | None, cache: Path
    ) -> dict[str, Any]:
        """The report of a dataset as the fields of ReportDatasetResponse. Raises InvalidArgument, Unavailable."""
        question = {
            "question": "report",
            "max_seq_length": request.max_seq_length or DEFAULT_LENGTH,
            "preview_rows": request.preview_rows or DEFAULT_PREVIEW,
            "seconds": TOKEN_SECONDS,
            **_described(files, model_dir, cache),
        }
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                answer = await self._ask(question)
        except (LaunchError, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(f"the report could not be made: {error or 'it took too long'}") from error
        if problems := answer.get("problems_found"):
            raise InvalidArgument(problems=[Problem(item["field"], item["message"]) for item in problems])
        return answer

    async def problems(self, spec: spec_pb2.FinetuneSpec, checked: CheckedSpec, cache: Path) -> list[Problem]:
        """What a tokenizer finds in a checked specification's data; empty when it takes too long to say."""
        if checked.problems or checked.dataset is None or checked.model_dir is None:
            return []
        parameters = spec.language_model
        question = {
            "question": "check",
            "max_seq_length": parameters.max_seq_length or DEFAULT_LENGTH,
            "max_samples": parameters.max_samples,
            "train_on_prompt": parameters.train_on_prompt,
            "tokenizer_dir": str(checked.tokenizer_dir or ""),
            "seconds": LOOK_SECONDS,
            **_described(checked.dataset, checked.model_dir, cache),
        }
        with contextlib.suppress(LaunchError, TimeoutError, OSError, ValueError):
            identity = key_of(question, *map(stamp, _files(question)))
            if identity in self._sound:
                return []
            async with asyncio.timeout(CHECK_SECONDS):
                answer = await self._ask(question)
            found = [Problem(item["field"], item["message"]) for item in answer["problems_found"]]
            if not found:
                self._sound[identity] = None
                while len(self._sound) > REMEMBERED:
                    self._sound.popitem(last=False)
            return found
        logger.warning("data was accepted without a look at its tokens: no answer from a child")
        return []

    async def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        async with self._places:
            return await self._ask_child(question)

    async def _ask_child(self, question: Mapping[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="tunesmith-data-") as name:
            folder = Path(name)
            (folder / QUESTION).write_text(json.dumps(question))
            child = await self._launcher.start(folder, {}, entry=ENTRY)
            try:
                async for _ in child.events:
                    break
            finally:
                child.kill()
                await child.wait()
            answer: dict[str, Any] = json.loads((folder / ANSWER).read_text())
            return answer


def _files(question: Mapping[str, Any]) -> list[Path]:
    """The files that an answer rests on."""
    folders = [Path(folder) for folder in (question["model_dir"], question["tokenizer_dir"]) if folder]
    texts = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in TEXT_SUFFIXES]
    return [*(Path(path) for path in question["files"] if path), *texts]


def _described(files: DatasetFiles, model_dir: Path | None, cache: Path) -> dict[str, Any]:
    reading, columns = files.reading, files.reading.columns
    return {
        "files": [str(path or "") for path in (files.train, files.validation, files.test)],
        "objective": reading.objective,
        "columns": [columns.text, columns.prompt, columns.response, columns.system, columns.messages, columns.label],
        "labels": list(reading.labels),
        "model_dir": str(model_dir or ""),
        "cache": str(cache),
    }
