"""Answers of models, streamed: from the request to the last token, with news of the loading before the first."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from eval_service.generation.models import LoadedModels
from eval_service.generation.preparation import Preparation, Prepared
from eval_service.generation.process import ModelProcess
from eval_service.generation.progress import Progress, told
from eval_service.generation.requests import wish_of
from eval_service.generation.sources import Choice, choose
from servicekit.identity import Principal
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import task_service_pb2_grpc
from workerkit.sources import source_of

MOST_NOTES = 1024


@dataclass(slots=True)
class _Note:
    """What a choice was loaded as, and who has used it."""

    prepared: Prepared
    used: datetime
    users: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Ready:
    """A model that is held as long as the stack is open."""

    stack: contextlib.AsyncExitStack
    process: ModelProcess
    prepared: Prepared


class Generation:
    """Streams answers. tasks is asked with the token of whoever calls, so nobody reaches a model that is not theirs."""

    def __init__(
        self, tasks: "task_service_pb2_grpc.TaskServiceAsyncStub", preparation: Preparation, models: LoadedModels
    ) -> None:
        self._tasks = tasks
        self._preparation = preparation
        self._models = models
        self._notes: OrderedDict[Choice, _Note] = OrderedDict()

    async def generate(
        self, request: pb.GenerateRequest, principal: Principal, token: str
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The answer to a request: news of the loading, pieces of text, and at last the reason why it ended.

        Leaving early ends the answer within a token. Raises InvalidArgument for what is wrong with the request,
        NotFound and FailedPrecondition for a model that is not there, ResourceExhausted when there is no room or too
        many wait, Internal when the model's process dies.
        """
        wish = wish_of(request)
        choice = choose(request, await source_of(self._tasks, request.task_id, token))
        progress = Progress()
        loading = asyncio.create_task(self._ready(choice, progress))
        try:
            async with contextlib.aclosing(told(loading, progress)) as news:
                async for phase, percent in news:
                    yield pb.GenerateResponse(loading=pb.LoadingProgress(phase=phase, percent=percent))
            ready = await loading
            self._note(choice, ready.prepared, principal)
            async with contextlib.aclosing(ready.process.generate(ready.prepared.variant, wish)) as messages:
                async for message in messages:
                    yield _response(message)
        finally:
            await _let_go(loading)

    def loaded(self, principal: Principal) -> list[pb.LoadedModel]:
        """The models in memory that a caller has used, last used first; an administrator sees all."""
        found = []
        for choice, note in self._notes.items():
            if self._holds(note.prepared) and (principal.is_admin or principal.user in note.users):
                memory = self._models.memory_of(note.prepared.base.key)
                model = pb.LoadedModel(task_id=choice.task_id, checkpoint_step=choice.step, memory_bytes=memory)
                model.use_time.FromDatetime(note.used)
                found.append(model)
        return sorted(found, key=lambda model: model.use_time.ToNanoseconds(), reverse=True)

    async def _ready(self, choice: Choice, progress: Progress) -> _Ready:
        """Holds the model of a choice, loaded and with its adapter in memory."""
        async with contextlib.AsyncExitStack() as stack:
            note = self._notes.get(choice)
            if note is not None and self._holds(note.prepared):
                prepared = note.prepared
                held = self._models.held(prepared.base, progress, prepared.variant)
                process = await stack.enter_async_context(held)
            else:
                prepared, process = await self._load(choice, progress, stack)
            return _Ready(stack.pop_all(), process, prepared)

    async def _load(
        self, choice: Choice, progress: Progress, stack: contextlib.AsyncExitStack
    ) -> tuple[Prepared, ModelProcess]:
        self._models.expect()
        files = contextlib.AsyncExitStack()
        prepared = await files.enter_async_context(self._preparation.ready(choice, progress))
        base, variant = prepared.base, prepared.variant
        try:
            process = await stack.enter_async_context(self._models.held(base, progress, variant))
            if prepared.adapter is not None and not self._models.holds(base.key, variant):
                progress.enter("loading adapter")
                await self._models.variant(base, process, variant, prepared.adapter)
        finally:
            self._models.release(base, files)  # a process may read on for a caller who has left
        return prepared, process

    def _holds(self, prepared: Prepared) -> bool:
        return self._models.holds(prepared.base.key, prepared.variant)

    def _note(self, choice: Choice, prepared: Prepared, principal: Principal) -> None:
        note = self._notes.pop(choice, None) or _Note(prepared, datetime.now(UTC))
        note.prepared, note.used = prepared, datetime.now(UTC)
        note.users.add(principal.user)
        self._notes[choice] = note
        while len(self._notes) > MOST_NOTES:
            self._notes.popitem(last=False)


async def _let_go(loading: "asyncio.Task[_Ready]") -> None:
    """Gives a model back, or gives up waiting for it."""
    loading.cancel()
    await asyncio.wait((loading,))
    if not loading.cancelled() and loading.exception() is None:
        await loading.result().stack.aclose()


def _response(message: dict[str, Any]) -> pb.GenerateResponse:
    if message["event"] == "text":
        return pb.GenerateResponse(text=message["text"])
    return pb.GenerateResponse(finish_reason=message["finish_reason"], usage=pb.TokenUsage(**message["usage"]))
