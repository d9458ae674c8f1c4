"""Use cases that only read: one task, pages of tasks, checkpoints."""

from dataclasses import dataclass

from servicekit.errors import InvalidArgument, Problem
from servicekit.identity import Principal
from task_service.convert import checkpoint_message, task_message
from task_service.database.access import Database
from task_service.database.listing import TaskQuery, list_tasks
from task_service.database.tasks import TaskRepository
from tunesmith.task.v1 import task_pb2, task_service_pb2


@dataclass(frozen=True, slots=True)
class Queries:
    """Reads; each sees the caller's own tasks only."""

    database: Database

    async def get(self, principal: Principal, task_id: str, number: int) -> task_pb2.Task:
        """A task by id or number. Raises NotFound."""
        if bool(task_id) == bool(number):
            raise InvalidArgument(problems=[Problem("task_id", "give the task's id or its number, and not both")])
        async with self.database.caller(), self.database.reading(single_statement=True) as session:
            return task_message(await TaskRepository(session).read(principal, task_id, number=number))

    async def page(
        self, principal: Principal, request: task_service_pb2.ListTasksRequest
    ) -> task_service_pb2.ListTasksResponse:
        """A page of tasks. Raises InvalidArgument for a token of another query."""
        query = TaskQuery(
            states=tuple(request.states),
            kinds=tuple(request.kinds),
            name_contains=request.name_contains,
            base_model_contains=request.base_model_contains,
            keyword=request.keyword,
            labels=dict(request.labels),
            source_task_id=request.source_task_id,
            order_by=request.order_by,
            ascending=request.ascending,
        )
        async with self.database.caller(), self.database.reading() as session:
            page = await list_tasks(
                session,
                principal,
                query,
                page_size=request.page_size,
                page_token=request.page_token,
                offset=request.offset,
                with_total=request.with_total,
            )
            details = await TaskRepository(session).details(page.rows)
        return task_service_pb2.ListTasksResponse(
            tasks=[task_message(item) for item in details],
            next_page_token=page.next_page_token,
            total_size=page.total,
        )

    async def checkpoints(self, principal: Principal, task_id: str) -> list[task_pb2.Checkpoint]:
        """Stored checkpoints, oldest first. Raises NotFound."""
        async with self.database.caller(), self.database.reading() as session:
            tasks = TaskRepository(session)
            row = await tasks.get(principal, task_id)
            return [checkpoint_message(row.id, checkpoint) for checkpoint in await tasks.checkpoints(row)]
