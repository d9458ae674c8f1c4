"""The blocking client."""

import time
from collections.abc import Callable, Generator, Iterator
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
from tunesmith.client.uploading import Progress, dataset_upload, ignore, sent
from tunesmith.task.v1.dataset_service_pb2 import Dataset
from tunesmith.task.v1.task_pb2 import Task
from tunesmith.task.v1.task_service_pb2 import ListTasksRequest

P = ParamSpec("P")
R = TypeVar("R", bound=Message)
T = TypeVar("T")


class _Caller:
    def __init__(self, http: httpx.Client, config: Config) -> None:
        self._http = http
        self._config = config

    def _call(self, operation: Operation[R, T]) -> T:
        exchange = Exchange(operation, self._config)
        while True:
            try:
                return exchange.result(self._http.send(exchange.build(self._http)))
            except (httpx.TransportError, ApiError) as failure:
                time.sleep(exchange.pause(failure))

    def _stream(self, operation: Operation[R, T]) -> Generator[T]:
        subscription = Subscription(operation, self._config)
        while not subscription.finished:
            failure: httpx.TransportError | ApiError | None = None
            try:
                yield from self._connection(subscription)
            except (httpx.TransportError, ApiError) as error:
                failure = error
            if not subscription.finished:
                time.sleep(subscription.pause(failure))

    def _connection(self, subscription: Subscription[R, T]) -> Iterator[T]:
        response = self._http.send(subscription.build(self._http), stream=True)
        try:
            subscription.check(response, b"" if response.is_success else response.read())
            for chunk in response.iter_bytes():
                yield from subscription.feed(chunk)
        finally:
            response.close()

    def _fetch(self, download: Download, progress: Progress) -> Path:
        download.prepare()
        while True:
            try:
                if not download.finished:
                    self._fetch_rest(download, progress)
            except (httpx.TransportError, ApiError) as failure:
                time.sleep(download.pause(failure))
                continue
            if download.complete():
                return download.target

    def _fetch_rest(self, download: Download, progress: Progress) -> None:
        response = self._http.send(download.build(self._http), stream=True)
        try:
            with download.open(response, b"" if response.is_success else response.read()) as file:
                for block in response.iter_bytes():
                    file.write(block)
                    download.received()
                    progress(file.tell(), download.size)
        finally:
            response.close()
        download.finished = True


def _call(build: Callable[P, Operation[R, T]]) -> Callable[Concatenate[_Caller, P], T]:
    @wraps(build)
    def method(self: _Caller, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._call(build(*args, **kwargs))

    return method


def _stream(build: Callable[P, Operation[R, T]]) -> Callable[Concatenate[_Caller, P], Generator[T]]:
    @wraps(build)
    def method(self: _Caller, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T]:
        return self._stream(build(*args, **kwargs))

    return method


class Tasks(_Caller):
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

    def list(self, request: ListTasksRequest | None = None) -> Iterator[Task]:
        """Yields all tasks that match, page after page."""
        pages = operations.Pages(request)
        while (page := pages.next_request()) is not None:
            yield from pages.taken(self.list_page(page))

    def wait(self, task_id: str) -> Task:
        """Returns the task when it has ended."""
        for response in self.watch(task_id):
            if operations.ended(response.event):
                break
        return self.get(task_id)


class Datasets(_Caller):
    """Calls about uploaded datasets and about data anywhere; see tunesmith.client.resources."""

    get = _call(resources.get_dataset)
    list_page = _call(resources.list_datasets)
    delete = _call(resources.delete_dataset)
    validate = _call(resources.validate_dataset)
    report = _call(resources.report_dataset)

    def upload(self, path: Path | str, *, name: str = "", kind: str = "", progress: Progress = ignore) -> Dataset:
        """Stores a file as a dataset, or as the next version of the one of that name; every row of it is checked.

        progress is called with the bytes sent and the file's size; from the start again when a try failed.
        """
        exchange = dataset_upload(path, self._config, name=name, kind=kind)
        while True:
            try:
                with exchange.path.open("rb") as file:
                    return exchange.result(
                        self._http.send(exchange.build_upload(self._http, sent(file, exchange.size, progress)))
                    )
            except (httpx.TransportError, ApiError) as failure:
                time.sleep(exchange.pause(failure))


class Templates(_Caller):
    """Calls about templates; see tunesmith.client.resources."""

    get = _call(resources.get_template)
    list_page = _call(resources.list_templates)
    save = _call(resources.save_template)
    delete = _call(resources.delete_template)


class Evaluations(_Caller):
    """Calls about evaluations; see tunesmith.client.evaluation. One begins as a task: tasks.create."""

    get = _call(evaluation.get_evaluation)
    list_page = _call(evaluation.list_evaluations)
    scores = _call(evaluation.list_scores)

    def download(self, task_id: str, name: str, path: Path | str, *, progress: Progress = ignore) -> Path:
        """Fetches a file of a report into a file or directory; where it lies then."""
        file = Download(evaluation.report_path(task_id, name), target_file(path, name), self._config)
        return self._fetch(file, progress)


class Exports(_Caller):
    """Calls about exports; see tunesmith.client.export. One begins as a task: tasks.create."""

    get = _call(export.get_export)
    list_page = _call(export.list_exports)
    formats = _call(export.list_formats)
    templates = _call(export.list_templates)

    def download(self, task_id: str, name: str, path: Path | str, *, progress: Progress = ignore) -> Path:
        """Fetches a file of an export into a file or directory; where it lies then. No name means the only file.

        What has come of it before, in the file with the ending .part, is not fetched again; the whole is verified.
        progress is called with the bytes that are there and the file's size.
        """
        found = export.named(self.get(task_id), name)
        target = target_file(path, found.name)
        address = export.artifact_path(task_id, found.name)
        file = Download(address, target, self._config, sha256=found.sha256, size=found.size)
        return self._fetch(file, progress)


class Client(_Caller):
    """The platform, for programs that block; close it or use it as a context manager.

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
        super().__init__(httpx.Client(trust_env=self.config.trust_env), self.config)
        self.tasks = Tasks(self._http, self._config)
        self.datasets = Datasets(self._http, self._config)
        self.templates = Templates(self._http, self._config)
        self.evaluations = Evaluations(self._http, self._config)
        self.exports = Exports(self._http, self._config)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
