"""The asynchronous client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import httpx
from google.protobuf.message import Message

from tunesmith.client import evaluation, export, generation, operations, resources
from tunesmith.client.config import Config, discover
from tunesmith.client.downloading import Download, target_file
from tunesmith.client.errors import ApiError
from tunesmith.client.exchange import Exchange, Operation, Subscription
from tunesmith.client.uploading import Progress, dataset_upload, ignore, sent_in_threads
from tunesmith.task.v1.dataset_service_pb2 import Dataset
from tunesmith.task.v1.task_pb2 import Task
from tunesmith.task.v1.task_service_pb2 import ListTasksRequest

P = ParamSpec("P")
R = TypeVar("R", bound=Message)
T = TypeVar("T")


class _Caller:
    def __init__(self, http: httpx.AsyncClient, config: Config) -> None:
        self._http = http
        self._config = config

    async def _call(self, operation: Operation[R, T]) -> T:
        exchange = Exchange(operation, self._config)
        while True:
            try:
                return exchange.result(await self._http.send(exchange.build(self._http)))
            except (httpx.TransportError, ApiError) as failure:
                await asyncio.sleep(exchange.pause(failure))

    async def _stream(self, operation: Operation[R, T]) -> AsyncGenerator[T]:
        subscription = Subscription(operation, self._config)
        while not subscription.finished:
            failure: httpx.TransportError | ApiError | None = None
            try:
                async with aclosing(self._connection(subscription)) as messages:
                    async for message in messages:
                        yield message
            except (httpx.TransportError, ApiError) as error:
                failure = error
            if not subscription.finished:
                await asyncio.sleep(subscription.pause(failure))

    async def _connection(self, subscription: Subscription[R, T]) -> AsyncGenerator[T]:
        response = await self._http.send(subscription.build(self._http), stream=True)
        try:
            subscription.check(response, b"" if response.is_success else await response.aread())
            async for chunk in response.aiter_bytes():
                for message in subscription.feed(chunk):
                    yield message
        finally:
            await response.aclose()

    async def _fetch(self, download: Download, progress: Progress) -> Path:
        await asyncio.to_thread(download.prepare)
        while True:
            try:
                if not download.finished:
                    await self._fetch_rest(download, progress)
            except (httpx.TransportError, ApiError) as failure:
                await asyncio.sleep(download.pause(failure))
                continue
            if await asyncio.to_thread(download.complete):
                return download.target

    async def _fetch_rest(self, download: Download, progress: Progress) -> None:
        response = await self._http.send(download.build(self._http), stream=True)
        try:
            with download.open(response, b"" if response.is_success else await response.aread()) as file:
                async for block in response.aiter_bytes():
                    await asyncio.to_thread(file.write, block)
                    download.received()
                    progress(file.tell(), download.size)
        finally:
            await response.aclose()
        download.finished = True


def _call(build: Callable[P, Operation[R, T]]) -> Callable[Concatenate[_Caller, P], Awaitable[T]]:
    @wraps(build)
    def method(self: _Caller, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        return self._call(build(*args, **kwargs))

    return method


def _stream(build: Callable[P, Operation[R, T]]) -> Callable[Concatenate[_Caller, P], AsyncGenerator[T]]:
    @wraps(build)
    def method(self: _Caller, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        return self._stream(build(*args, **kwargs))

    return method


class AsyncTasks(_Caller):
    """Calls about tasks; what each does and returns is said in tunesmith.client.operations."""

    create = _call(operations.create)
    get = _call(operations.get)
    list_page = _call(operations.list_page)
    stop = _call(operations.stop)
    resume = _call(operations.resume)
    delete = _call(operations.delete)
    logs = _call(operations.log)
    metrics = _call(operations.metrics)
    checkpoints = _call(operations.checkpoints)
    watch = _stream(operations.watch)
    watch_all = _stream(operations.watch_all)
    follow_logs = _stream(operations.follow_log)

    async def list(self, request: ListTasksRequest | None = None) -> AsyncIterator[Task]:
        """Yields all tasks that match, page after page."""
        pages = operations.Pages(request)
        while (page := pages.next_request()) is not None:
            for task in pages.taken(await self.list_page(page)):
                yield task

    async def wait(self, task_id: str) -> Task:
        """Returns the task when it has ended."""
        async with aclosing(self.watch(task_id)) as responses:
            async for response in responses:
                if operations.ended(response.event):
                    break
        return await self.get(task_id)


class AsyncDatasets(_Caller):
    """Calls about uploaded datasets and about data anywhere; see tunesmith.client.resources."""

    get = _call(resources.get_dataset)
    list_page = _call(resources.list_datasets)
    delete = _call(resources.delete_dataset)
    validate = _call(resources.validate_dataset)
    report = _call(resources.report_dataset)

    async def upload(self, path: Path | str, *, name: str = "", kind: str = "", progress: Progress = ignore) -> Dataset:
        """Stores a file as a dataset, or as the next version of the one of that name; every row of it is checked.

        progress is called with the bytes sent and the file's size; from the start again when a try failed.
        """
        exchange = dataset_upload(path, self._config, name=name, kind=kind)
        while True:
            try:
                with exchange.path.open("rb") as file:
                    request = exchange.build_upload(self._http, sent_in_threads(file, exchange.size, progress))
                    return exchange.result(await self._http.send(request))
            except (httpx.TransportError, ApiError) as failure:
                await asyncio.sleep(exchange.pause(failure))


class AsyncTemplates(_Caller):
    """Calls about templates; see tunesmith.client.resources."""

    get = _call(resources.get_template)
    list_page = _call(resources.list_templates)
    save = _call(resources.save_template)
    delete = _call(resources.delete_template)


class AsyncEvaluations(_Caller):
    """Calls about evaluations; see tunesmith.client.evaluation. One begins as a task: tasks.create."""

    get = _call(evaluation.get_evaluation)
    list_page = _call(evaluation.list_evaluations)
    scores = _call(evaluation.list_scores)

    async def download(self, task_id: str, name: str, path: Path | str, *, progress: Progress = ignore) -> Path:
        """Fetches a file of a report into a file or directory; where it lies then."""
        file = Download(evaluation.report_path(task_id, name), target_file(path, name), self._config)
        return await self._fetch(file, progress)


class AsyncExports(_Caller):
    """Calls about exports; see tunesmith.client.export. One begins as a task: tasks.create."""

    get = _call(export.get_export)
    list_page = _call(export.list_exports)
    formats = _call(export.list_formats)
    templates = _call(export.list_templates)

    async def download(self, task_id: str, name: str, path: Path | str, *, progress: Progress = ignore) -> Path:
        """Fetches a file of an export into a file or directory; where it lies then. No name means the only file.

        What has come of it before, in the file with the ending .part, is not fetched again; the whole is verified.
        progress is called with the bytes that are there and the file's size.
        """
        found = export.named(await self.get(task_id), name)
        target = target_file(path, found.name)
        address = export.artifact_path(task_id, found.name)
        file = Download(address, target, self._config, sha256=found.sha256, size=found.size)
        return await self._fetch(file, progress)


class AsyncClient(_Caller):
    """The platform, for asyncio programs; close it or use it as a context manager.

    What is not given comes from TUNESMITH_URL and TUNESMITH_TOKEN, else from the data directory of `tunesmith up`.
    """

    devices = _call(operations.devices)
    base_models = _call(operations.base_models)
    environment = _call(operations.environment)
    estimate = _call(resources.estimate)
    quota = _call(resources.quota)
    set_quota = _call(resources.set_quota)
    parameters = _call(resources.parameters)
    generate = _stream(generation.generate)
    loaded_models = _call(generation.loaded_models)

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        data_dir: Path | str | None = None,
        config: Config | None = None,
    ) -> None:
        self.config = config or discover(url, token, data_dir)
        super().__init__(httpx.AsyncClient(trust_env=self.config.trust_env), self.config)
        self.tasks = AsyncTasks(self._http, self._config)
        self.datasets = AsyncDatasets(self._http, self._config)
        self.templates = AsyncTemplates(self._http, self._config)
        self.evaluations = AsyncEvaluations(self._http, self._config)
        self.exports = AsyncExports(self._http, self._config)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
