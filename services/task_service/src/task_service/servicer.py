"""TaskService over gRPC: convert, call, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from servicekit.grpc_server import validates_itself
from servicekit.identity import current_principal
from task_service.commands.create import CreateTask
from task_service.commands.query import Queries
from task_service.commands.steer import Steering
from task_service.commands.work import Work
from task_service.datasets.servicer import identity
from task_service.sources.describe import Sources
from task_service.streams.log_reader import LogReader
from task_service.streams.metrics import MetricReader
from task_service.streams.watch import TaskWatcher
from task_service.streams.watch_all import AllTasksWatcher
from tunesmith.task.v1 import task_service_pb2 as pb
from tunesmith.task.v1 import task_service_pb2_grpc

Context = Any


@dataclass(frozen=True, slots=True)
class TaskServicer(task_service_pb2_grpc.TaskServiceServicer):
    """Every method sees the caller's own tasks only; workers and administrators see all."""

    create: CreateTask
    steering: Steering
    work: Work
    queries: Queries
    watcher: TaskWatcher
    all_watcher: AllTasksWatcher
    logs: LogReader
    metrics: MetricReader
    sources: Sources

    @validates_itself
    async def CreateTask(self, request: pb.CreateTaskRequest, context: Context) -> pb.CreateTaskResponse:
        return pb.CreateTaskResponse(task=await self.create(current_principal(), request, identity(context)))

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        return pb.GetTaskResponse(task=await self.queries.get(current_principal(), request.task_id, request.number))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        return await self.queries.page(current_principal(), request)

    async def StopTask(self, request: pb.StopTaskRequest, context: Context) -> pb.StopTaskResponse:
        return pb.StopTaskResponse(task=await self.steering.stop(current_principal(), request.task_id, request.discard))

    async def ResumeTask(self, request: pb.ResumeTaskRequest, context: Context) -> pb.ResumeTaskResponse:
        return pb.ResumeTaskResponse(
            task=await self.steering.resume(current_principal(), request.task_id, request.checkpoint_step)
        )

    async def DeleteTask(self, request: pb.DeleteTaskRequest, context: Context) -> pb.DeleteTaskResponse:
        await self.steering.delete(current_principal(), request.task_id, request.force)
        return pb.DeleteTaskResponse()

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        return pb.ListCheckpointsResponse(
            checkpoints=await self.queries.checkpoints(current_principal(), request.task_id)
        )

    async def GetTaskSource(self, request: pb.GetTaskSourceRequest, context: Context) -> pb.GetTaskSourceResponse:
        return pb.GetTaskSourceResponse(source=await self.sources.get(current_principal(), request.task_id))

    async def ClaimTask(self, request: pb.ClaimTaskRequest, context: Context) -> pb.ClaimTaskResponse:
        return await self.work.claim(current_principal(), request.task_id, request.attempt, request.worker)

    async def HeartbeatTask(self, request: pb.HeartbeatTaskRequest, context: Context) -> pb.HeartbeatTaskResponse:
        return await self.work.heartbeat(current_principal(), request)

    async def WatchTask(self, request: pb.WatchTaskRequest, context: Context) -> AsyncIterator[pb.WatchTaskResponse]:
        async with aclosing(self.watcher.watch(current_principal(), request.task_id, request.cursor)) as events:
            async for event, cursor in events:
                yield pb.WatchTaskResponse(event=event, cursor=cursor)

    async def WatchTasks(self, request: pb.WatchTasksRequest, context: Context) -> AsyncIterator[pb.WatchTasksResponse]:
        async with aclosing(self.all_watcher.watch(current_principal(), request.cursor)) as events:
            async for event, cursor in events:
                yield pb.WatchTasksResponse(event=event, cursor=cursor)

    async def ListMetrics(self, request: pb.ListMetricsRequest, context: Context) -> pb.ListMetricsResponse:
        series = await self.metrics.series(
            current_principal(),
            request.task_id,
            names=request.names,
            max_points=request.max_points,
            after_step=request.after_step,
        )
        return pb.ListMetricsResponse(series=series)

    async def ReadLog(self, request: pb.ReadLogRequest, context: Context) -> pb.ReadLogResponse:
        lines, total = await self.logs.read(
            current_principal(), request.task_id, tail=request.tail, offset=request.offset
        )
        return pb.ReadLogResponse(lines=lines, total_lines=total)

    async def TailLog(self, request: pb.TailLogRequest, context: Context) -> AsyncIterator[pb.TailLogResponse]:
        async with aclosing(self.logs.tail(current_principal(), request.task_id, request.cursor)) as portions:
            async for lines, cursor in portions:
                yield pb.TailLogResponse(lines=lines, cursor=cursor)
