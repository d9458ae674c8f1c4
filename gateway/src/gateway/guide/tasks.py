"""What the routes of both surfaces do with tasks: calls of the services, answered in the training guide's terms."""

from collections.abc import Callable, Sequence
from typing import Any

from gateway.backends import Backends
from gateway.guide import uploads, views
from gateway.guide.call import Call
from gateway.guide.creation import DATASET, MODALITIES, Creation
from gateway.guide.forms import read_form
from parameterkit import BY_NAME
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, TunesmithError, Unauthenticated
from tunesmith.task.v1 import (
    dataset_service_pb2_grpc,
    task_pb2,
    task_service_pb2,
    task_service_pb2_grpc,
)

# A form's file; as the name of a parameter it means dataset_path too.
FILE = "dataset"
MOST_LISTED = 1000
_PAGE = 200

Suits = Callable[[task_pb2.Task], bool]


def is_training(task: task_pb2.Task) -> bool:
    """Every task that trains a model."""
    return task.spec.HasField("finetune")


class GuideTasks:
    """Tasks of one surface: those that suit it."""

    def __init__(self, backends: Backends, suits: Suits = is_training) -> None:
        self._tasks = task_service_pb2_grpc.TaskServiceStub(backends.channels["task"])
        self.datasets = dataset_service_pb2_grpc.DatasetServiceStub(backends.channels["task"])
        self._suits = suits

    async def create(self, call: Call, creation: Creation) -> str:
        """Creates a task; its id. Raises InvalidArgument with everything that the gateway and the services found."""
        if creation.problems:
            await self.check(call, creation)
        creation.identify(call.repeat_key())
        try:
            response = await call.ask(self._tasks.CreateTask, creation.request)
        except InvalidArgument as error:
            raise _renamed(error, creation.service_problems(error.problems)) from None
        return str(response.task.id)

    async def create_with_file(self, call: Call, surface: str, modality: str = "language_model") -> Any:
        """Creates a task from a form with a dataset in it; a surface is one of parameterkit's.

        The fields are checked before the file is stored, and the whole request once more with it.
        """
        async with read_form(call, FILE) as form:
            file = form.file(FILE)
            fields = {name: text for name, text in form.fields.items() if name not in BY_NAME[FILE].names}
            await self.check(call, Creation(fields, surface, modality, texts=True), without=DATASET)
            kind = next(word for word, name in MODALITIES.items() if name == modality)
            dataset = await uploads.store(self.datasets.UploadDataset, call, file, FILE, kind=kind)
        creation = Creation({**fields, FILE: dataset.id}, surface, modality, texts=True)
        return started(await self.create(call, creation))

    async def check(self, call: Call, creation: Creation, *, without: str = "") -> None:
        """Has the services look at a request without creating anything; without is a field that is still to come.

        Raises InvalidArgument with everything that was found.
        """
        found: list[Problem] = []
        known = [problem for problem in creation.problems if problem.field != without]
        try:
            await call.ask(self._tasks.CreateTask, creation.only_check())
        except TunesmithError as error:
            if isinstance(error, Unauthenticated) or not (error.problems or known):
                raise
            found = [problem for problem in creation.service_problems(error.problems) if problem.field != without]
        if known or found:
            raise InvalidArgument(problems=[*known, *found])

    async def get(self, call: Call, task_id: str) -> task_pb2.Task:
        """A task of this surface. Raises NotFound."""
        response = await call.ask(self._tasks.GetTask, task_service_pb2.GetTaskRequest(task_id=task_id))
        task: task_pb2.Task = response.task
        if not self._suits(task):
            raise NotFound(f"there is no task {task_id}", reason="TASK_NOT_FOUND")
        return task

    async def completed(self, call: Call, task_id: str) -> task_pb2.Task:
        """A task that is completed. Raises NotFound, FailedPrecondition."""
        task = await self.get(call, task_id)
        if task.state != task_pb2.STATE_COMPLETED:
            status = views.STATUS_OF_STATE.get(task.state, "pending")
            raise FailedPrecondition(f"task {task_id} is {status}; wait until it is completed")
        return task

    async def listed(self, call: Call, states: Sequence[Any]) -> list[task_pb2.Task]:
        """The newest tasks in some states, as many as the query's limit."""
        most = call.count("limit", MOST_LISTED, MOST_LISTED)
        request = task_service_pb2.ListTasksRequest(page_size=_PAGE, states=states, kinds=[task_pb2.KIND_FINETUNE])
        found: list[task_pb2.Task] = []
        while len(found) < most:
            response = await call.ask(self._tasks.ListTasks, request)
            found += [task for task in response.tasks if self._suits(task)]
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        return found[:most]

    async def status(self, call: Call) -> Any:
        """GET status/{task_id}."""
        return views.status_document(await self.get(call, call.path("task_id")))

    async def stop(self, call: Call) -> Any:
        """POST stop/{task_id}."""
        task = await self.get(call, call.path("task_id"))
        try:
            response = await call.ask(self._tasks.StopTask, task_service_pb2.StopTaskRequest(task_id=task.id))
        except FailedPrecondition:
            status = views.status_document(await self.get(call, task.id))["status"]
            raise FailedPrecondition(f"the task is not running: it is {status}") from None
        return views.status_document(response.task)

    async def active(self, call: Call) -> Any:
        """GET tasks: those that have not ended."""
        return [views.status_document(task) for task in await self.listed(call, views.ACTIVE)]

    async def history(self, call: Call) -> Any:
        """GET history: those that have ended."""
        return [views.status_document(task) for task in await self.listed(call, views.ENDED)]

    async def checkpoints(self, call: Call) -> Any:
        """GET checkpoints/{task_id}, oldest first."""
        task = await self.get(call, call.path("task_id"))
        request = task_service_pb2.ListCheckpointsRequest(task_id=task.id)
        response = await call.ask(self._tasks.ListCheckpoints, request)
        return {"checkpoints": [views.checkpoint_document(checkpoint) for checkpoint in response.checkpoints]}


def started(task_id: str) -> dict[str, Any]:
    """The answer of the routes that take a form."""
    return {"success": True, "message": "training started", "error": None, "task_id": task_id, "status": "pending"}


def _renamed(error: InvalidArgument, problems: Sequence[Problem]) -> InvalidArgument:
    return InvalidArgument("" if problems else error.message, reason=error.reason, problems=problems)
