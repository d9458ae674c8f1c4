"""What tasks have produced, asked of the task service on behalf of whoever calls."""

import grpc

from servicekit.grpc_client import bearer
from servicekit.identity import current_principal
from tunesmith.task.v1 import task_service_pb2, task_service_pb2_grpc


def identity(token: str) -> grpc.aio.Metadata | None:
    """The metadata of a call on behalf of somebody; None where there is no authentication."""
    return bearer(token) if token else None


async def source_of(
    tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", task_id: str, token: str
) -> task_service_pb2.TaskSource:
    """What a task has produced. NotFound also for somebody else's task."""
    request = task_service_pb2.GetTaskSourceRequest(task_id=task_id)
    answer: task_service_pb2.GetTaskSourceResponse = await tasks.GetTaskSource(request, metadata=identity(token))
    return answer.source


async def trusted_source(
    tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", claimed: task_service_pb2.TaskSource, task_id: str, token: str
) -> task_service_pb2.TaskSource:
    """What a task has produced, of which only a service's own word is taken. NotFound as source_of.

    claimed is what the caller of the RPC that is being served says; a user could name what others have stored.
    """
    return claimed if current_principal().is_service else await source_of(tasks, task_id, token)
