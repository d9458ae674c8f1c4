"""Has the rows of an uploaded dataset checked by a trainer, which alone can read every form."""

import logging
from dataclasses import dataclass
from typing import Protocol

import grpc

from servicekit.errors import InvalidArgument, TunesmithError
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from tunesmith.trainer.v1 import trainer_service_pb2_grpc

logger = logging.getLogger(__name__)

# Pictures are checked by those who train on them.
PICTURES = frozenset({"image_classifier", "object_detector", "object_detection", "text_to_image"})
SENTENCES = 100
SENTENCE_LENGTH = 2_000

Metadata = grpc.aio.Metadata


@dataclass(frozen=True, slots=True)
class Checked:
    """What a pass over every row found; problems are sentences with line numbers."""

    samples: int
    format: str
    problems: list[str]


class DatasetChecker(Protocol):
    """Reads every row of a stored dataset."""

    async def check(self, dataset_id: str, identity: Metadata | None) -> Checked | None:
        """What was found, None when nobody could look. identity is that of the caller.

        Raises InvalidArgument for a file that cannot be read at all.
        """
        ...


class TrainerDatasetChecker:
    """Asks a trainer. Without an answer the dataset is checked when a task wants to use it."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self._stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        self._seconds = seconds

    async def check(self, dataset_id: str, identity: Metadata | None) -> Checked | None:
        request = trainer.ValidateDatasetRequest(dataset=spec_pb2.DatasetSource(dataset_id=dataset_id))
        try:
            found = await self._stub.ValidateDataset(request, timeout=self._seconds, metadata=identity)
        except InvalidArgument:
            raise
        except TunesmithError as error:
            logger.warning("dataset %s could not be checked, it will be when it is used: %s", dataset_id, error.message)
            return None
        return Checked(found.rows, found.format, [sentence(problem) for problem in found.problems[:SENTENCES]])


def sentence(problem: trainer.DatasetProblem) -> str:
    """A problem with its lines and what to do about it."""
    lines = ", ".join(map(str, problem.first_lines))
    more = ", ..." if problem.count > len(problem.first_lines) else ""
    where = f" ({problem.count} {'line' if problem.count == 1 else 'lines'}: {lines}{more})" if lines else ""
    return f"{problem.file}: {problem.message}{where}; {problem.hint}"[:SENTENCE_LENGTH].replace("\0", "\ufffd")
