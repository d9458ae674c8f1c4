"""The service answers from any checkpoint: through gRPC, real processes and an object store."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from eval_service.generation.memory import PROCESS_BYTES
from eval_service.generation.process import ENTRY
from eval_service.setup import PRELOAD
from modelkit.loading import load_tokenizer
from servicekit.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TunesmithError,
    Unauthenticated,
)
from servicekit.identity import Role
from services.eval_service.tests.generation.conftest import build_model
from services.eval_service.tests.generation.gguf_files import write_gguf
from services.eval_service.tests.generation.service import Caller, Service, request, running_service
from tests.support.waiting import eventually
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import spec_pb2
from workerkit.fork_launcher import ForkLauncher, running_launcher

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("generation")]

ROOM_FOR_ONE = PROCESS_BYTES + (64 << 20)
ENDLESS = {"max_tokens": 400, "temperature": 2.0, "top_k": 0, "top_p": 1.0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher() -> AsyncIterator[ForkLauncher]:
    async with running_launcher(preload=PRELOAD, entry=ENTRY) as launcher:
        yield launcher


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    models: dict[str, Path], adapters: list[Path], launcher: ForkLauncher, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """A service with a task that has two checkpoints, and its final model."""
    folder = tmp_path_factory.mktemp("service")
    async with running_service(folder, [path.parent for path in models.values()], launcher) as running:
        await running.finetune("tuned", models["qwen2"], {100: adapters[0], 200: adapters[1]})
        yield running


def pids(service: Service) -> list[int]:
    """Processes of models that run."""
    entries = service.generation._models._entries.values()
    return [entry.process.pid for entry in entries if entry.process is not None]


async def refused(caller: Caller, kind: type[TunesmithError], task_id: str, **options: Any) -> TunesmithError:
    with pytest.raises(kind) as caught:
        await caller.ask(task_id, **options)
    return caught.value


async def test_two_checkpoints_and_the_base_of_a_running_task_are_compared(service: Service) -> None:
    """T26, M16: one prompt, three models, one process."""
    caller = service.caller()
    first, second = await asyncio.gather(
        caller.ask("tuned", checkpoint_step=100), caller.ask("tuned", checkpoint_step=200)
    )
    base = await caller.ask("tuned", base_model=True)
    newest = await caller.ask("tuned")
    assert len({first.text, second.text, base.text}) == 3
    assert newest.text == second.text, "without a step the newest checkpoint answers"
    phases = first.phases + second.phases
    assert {"fetching checkpoint", "finding base model", "loading model", "loading adapter"} <= set(phases)
    assert not newest.phases
    assert first.end.finish_reason in ("stop", "length")
    assert first.end.usage.completion_tokens == 12
    assert first.end.usage.prompt_tokens > 5
    assert len(pids(service)) == 1
    assert sum(1 for response in first.responses if response.text) > 3, "the text did not come in pieces"


async def test_loaded_models_are_listed_to_those_who_use_them(service: Service) -> None:
    caller = service.caller()
    for step in (100, 200):
        await caller.ask("tuned", checkpoint_step=step)
    models = await caller.loaded()
    assert [(model.task_id, model.checkpoint_step) for model in models][:2] == [("tuned", 200), ("tuned", 100)]
    assert all(model.memory_bytes > 0 for model in models)
    assert models[0].use_time.ToNanoseconds() > models[1].use_time.ToNanoseconds()
    assert await service.caller("bob").loaded() == []
    assert len(await service.caller("root", Role.ADMIN).loaded()) == len(models)


async def test_a_task_of_somebody_else_is_not_found(service: Service) -> None:
    await refused(service.caller("bob"), NotFound, "tuned")
    with pytest.raises(Unauthenticated):
        metadata = (("authorization", "Bearer nonsense"),)
        async for _ in service.caller().stub.Generate(request("tuned", "x"), metadata=metadata):
            pytest.fail("an answer for nobody")


async def test_a_system_prompt_several_turns_and_stop_texts(service: Service, models: dict[str, Path]) -> None:
    """M16: the model reads the whole conversation as its template writes it, and ends before the first stop text."""
    caller, tokenizer = service.caller(), cast(Any, load_tokenizer(models["qwen2"]))
    answers = []
    for character in ("You are a pirate.", "You are a judge."):
        turns = [pb.Message(role="system", content=character)]
        for question in ("What does a lock do?", "And then?"):
            turns.append(pb.Message(role="user", content=question))
            told = await caller.ask("tuned", messages=turns)
            said = [{"role": turn.role, "content": turn.content} for turn in turns]
            read = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
            assert told.end.usage.prompt_tokens == len(read)
            turns.append(pb.Message(role="assistant", content=told.text))
        answers.append(turns[2].content)
    assert answers[0] != answers[1], "the system prompt makes no difference"
    whole = turns[-1].content
    assert whole != answers[1], "the second turn is answered like the first"
    stops = [whole[6:9], whole[3:5], "never said"]
    stopped = await caller.ask("tuned", messages=turns[:-1], stop=stops)
    assert stopped.text == whole[: min(whole.index(stop) for stop in stops[:2])]
    assert stopped.end.finish_reason == "stop"


async def test_sampling_stop_texts_and_turns_pass_through(service: Service) -> None:
    caller = service.caller()
    whole = (await caller.ask("tuned")).text
    stop = whole[3:6]
    stopped = await caller.ask("tuned", stop=[stop])
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.end.finish_reason == "stop"
    turns = [
        pb.Message(role="system", content="Be brief."),
        pb.Message(role="user", content="What does a lock do?"),
        pb.Message(role="assistant", content="It waits."),
        pb.Message(role="user", content="What does a lock do?"),
    ]
    assert (await caller.ask("tuned", messages=turns)).text != whole
    seeds = [(await caller.ask("tuned", temperature=1.5, top_k=0, seed=seed)).text for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


async def test_what_is_wrong_with_a_request_is_told_at_once(service: Service) -> None:
    error = await refused(
        service.caller(),
        InvalidArgument,
        "tuned",
        max_tokens=0,
        repetition_penalty=3.0,
        messages=[pb.Message(role="robot", content="x"), pb.Message(role="system", content="y")],
    )
    fields = [problem.field for problem in error.problems]
    assert fields == ["max_tokens", "repetition_penalty", "messages[0].role", "messages[1].role", "messages"]
    long = await refused(service.caller(), InvalidArgument, "tuned", text="def wait(): " * 400)
    assert long.reason == "CONVERSATION_TOO_LONG"


async def test_models_that_are_not_there(
    service: Service, models: dict[str, Path], adapters: list[Path], tmp_path: Path
) -> None:
    caller = service.caller()
    error = await refused(caller, NotFound, "tuned", checkpoint_step=7)
    assert "there are: 100, 200" in error.message
    await service.finetune("fresh", models["qwen2"], {})
    assert (await refused(caller, FailedPrecondition, "fresh")).reason == "NO_CHECKPOINT"
    assert (await caller.ask("fresh", base_model=True)).text
    classifier = spec_pb2.LanguageModelParameters(objective=spec_pb2.OBJECTIVE_CLASSIFICATION)
    await service.finetune("classes", models["qwen2"], {1: adapters[0]}, parameters=classifier)
    assert (await refused(caller, FailedPrecondition, "classes")).reason == "MODEL_CLASSIFIES"
    await service.export("merged classes", build_classifier(tmp_path, models["qwen2"]))
    assert (await refused(caller, FailedPrecondition, "merged classes")).reason == "MODEL_CLASSIFIES"
    await service.finetune("lost", tmp_path / "nowhere", {1: adapters[0]})
    assert "base_model" in (await refused(caller, FailedPrecondition, "lost")).message
    await service.finetune("other", models["llama"], {1: build_other(tmp_path, adapters[0])})
    assert (await refused(caller, FailedPrecondition, "other")).reason == "BASE_MODEL_CHANGED"


def build_classifier(folder: Path, model: Path) -> Path:
    """A merged model that says that it classifies."""
    shutil.copytree(model, folder / "classifier")
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["Qwen2ForSequenceClassification"]
    (folder / "classifier" / "config.json").write_text(json.dumps(config))
    return folder / "classifier"


def build_other(folder: Path, adapter: Path) -> Path:
    """A checkpoint that notes which base model it was trained on."""
    shutil.copytree(adapter, folder / "noted")
    note = f'{{"origin": {{"base_model": "former", "base_model_sha256": "00{folder.name}"}}}}'
    (folder / "noted" / "trainer_state.json").write_text(note)
    return folder / "noted"


async def test_a_damaged_checkpoint_is_refused(
    service: Service, models: dict[str, Path], adapters: list[Path], tmp_path: Path
) -> None:
    await service.finetune("damaged", models["qwen2"], {1: build_other(tmp_path, adapters[0])})
    source = service.office.known.sources["damaged"]
    key = f"{source.checkpoints[0].prefix}/adapter_config.json"
    await service.store.put_bytes(key, b"{}")
    error = await refused(service.caller(), FailedPrecondition, "damaged")
    assert error.reason == "STORED_MODEL_DAMAGED"
    assert "adapter_config.json" in error.message


async def test_whole_models_from_trainings_and_exports(
    service: Service, models: dict[str, Path], tmp_path: Path
) -> None:
    """A full training's output, a merged model in a folder of an export, and a task on another task's output."""
    caller = service.caller()
    whole = build_model(tmp_path / "whole", "qwen2", seed=5)
    await service.finetune("full", models["qwen2"], {}, output=whole)
    expected = await caller.ask("full")
    assert expected.text
    export = tmp_path / "export"
    shutil.copytree(whole, export / "merged")
    (export / "export.json").write_text("{}")
    await service.export("merged", export)
    assert (await caller.ask("merged")).text == expected.text
    await service.finetune("onto", Path("task:full"), {})
    source = service.office.known.sources["onto"]
    source.spec.finetune.base_model = "task:full"
    source.base_model_prefix = service.office.known.sources["full"].output.prefix
    assert (await caller.ask("onto", base_model=True)).text == expected.text
    assert (await refused(caller, InvalidArgument, "merged", base_model=True)).problems[0].field == "base_model"


async def test_gguf_models_of_exports(service: Service, models: dict[str, Path], tmp_path: Path) -> None:
    caller = service.caller()
    export = tmp_path / "export"
    export.mkdir()
    write_gguf(models["qwen2"], export / "merged_model-F32.gguf")
    await service.export("one-gguf", export)
    await service.finetune("its-base", models["qwen2"], {})
    expected = await caller.ask("its-base", base_model=True)
    assert (await caller.ask("one-gguf")).text == expected.text
    shutil.copy(export / "merged_model-F32.gguf", export / "merged_model-Q8_0.gguf")
    (export / "task-lora.gguf").write_bytes(b"GGUF")
    await service.export("two-ggufs", export)
    error = await refused(caller, FailedPrecondition, "two-ggufs")
    assert error.reason == "ARTIFACT_MISSING"
    assert "merged_model-F32.gguf, merged_model-Q8_0.gguf" in error.message
    assert (await caller.ask("two-ggufs", artifact="merged_model-Q8_0.gguf")).text == expected.text
    unknown = await refused(caller, NotFound, "two-ggufs", artifact="merged_model-Q2_K.gguf")
    assert unknown.reason == "ARTIFACT_NOT_FOUND"


async def test_leaving_ends_the_answer(service: Service) -> None:
    caller = service.caller()
    await caller.ask("tuned")
    call = caller.stub.Generate(request("tuned", "Tell everything", **ENDLESS))
    async for response in call:
        if response.text:
            break
    call.cancel()
    entry = next(entry for entry in service.generation._models._entries.values() if entry.adapters)
    await eventually(lambda: entry.users == 0)
    assert not entry.process._answers  # type: ignore[union-attr]
    assert (await caller.ask("tuned")).text


async def test_a_model_whose_process_dies_is_loaded_anew(service: Service) -> None:
    caller = service.caller()
    before = (await caller.ask("tuned")).text
    call = caller.stub.Generate(request("tuned", "Tell everything", **ENDLESS))
    with pytest.raises(Internal, match=r"by signal SIGKILL.*Ask again") as caught:
        async for response in call:
            if response.text:
                for pid in pids(service):
                    with contextlib.suppress(ProcessLookupError):  # more text came after it was killed
                        os.kill(pid, signal.SIGKILL)
    assert caught.value.reason == "MODEL_PROCESS_DIED"
    again = await caller.ask("tuned")
    assert again.text == before
    assert "loading model" in again.phases


async def test_the_least_recently_used_model_leaves(
    models: dict[str, Path], adapters: list[Path], launcher: ForkLauncher, tmp_path: Path
) -> None:
    roots = [path.parent for path in models.values()]
    async with running_service(tmp_path, roots, launcher, generation_memory_bytes=2 * ROOM_FOR_ONE) as service:
        for family in ("llama", "llama2", "qwen2"):
            await service.finetune(family, models[family], {})
        caller = service.caller()
        await caller.ask("llama", base_model=True)
        await caller.ask("llama2", base_model=True)
        await caller.ask("llama", base_model=True)
        first = pids(service)
        await caller.ask("qwen2", base_model=True)
        assert [model.task_id for model in await caller.loaded()] == ["qwen2", "llama"]
        assert not Path(f"/proc/{first[1]}").exists(), "its memory is not free"
        service.generation._models._limits = replace(service.generation._models._limits, memory=ROOM_FOR_ONE)
        await caller.ask("llama", base_model=True)  # what is taken was less than what is needed now
        assert [model.task_id for model in await caller.loaded()] == ["llama"]


async def test_a_model_that_answers_never_leaves(
    models: dict[str, Path], launcher: ForkLauncher, tmp_path: Path
) -> None:
    roots = [path.parent for path in models.values()]
    async with running_service(tmp_path, roots, launcher, generation_memory_bytes=ROOM_FOR_ONE) as service:
        for family in ("llama", "qwen2"):
            await service.finetune(family, models[family], {})
        caller = service.caller()
        call = caller.stub.Generate(request("llama", "Tell everything", base_model=True, **ENDLESS))
        async for response in call:
            if response.text:
                break
        error = await refused(caller, ResourceExhausted, "qwen2", base_model=True)
        assert (error.reason, error.metadata) == ("MEMORY_BUSY", {"retry_after_seconds": "5"})
        assert "320 MiB" in error.message
        call.cancel()
        await eventually(lambda: not any(e.users for e in service.generation._models._entries.values()))
        assert (await caller.ask("qwen2", base_model=True)).text


async def test_limits_of_memory_and_of_the_queue(
    models: dict[str, Path], launcher: ForkLauncher, tmp_path: Path
) -> None:
    roots = [path.parent for path in models.values()]
    options = {"generation_at_once": 1, "generation_queue": 1, "generation_idle_seconds": 0.05}
    async with running_service(tmp_path, roots, launcher, **options) as service:
        await service.finetune("llama", models["llama"], {})
        caller = service.caller()
        calls = [caller.stub.Generate(request("llama", "x", base_model=True, **ENDLESS)) for _ in range(2)]
        await anext(aiter(calls[0]))
        await eventually(lambda: [e.users for e in service.generation._models._entries.values()] == [2])
        error = await refused(caller, ResourceExhausted, "llama", base_model=True)
        assert (error.reason, error.metadata) == ("GENERATION_QUEUE_FULL", {"retry_after_seconds": "5"})
        for call in calls:
            call.cancel()
        await eventually(lambda: not pids(service), what="an idle model to leave")
    async with running_service(tmp_path / "b", roots, launcher, generation_memory_bytes=1 << 20) as service:
        await service.finetune("llama", models["llama"], {})
        error = await refused(service.caller(), ResourceExhausted, "llama", base_model=True)
        assert (error.reason, error.metadata) == ("MODEL_TOO_LARGE", {})
        assert "may take 1 MiB" in error.message


async def test_a_checkpoint_is_fetched_once(
    models: dict[str, Path], adapters: list[Path], launcher: ForkLauncher, tmp_path: Path
) -> None:
    roots = [path.parent for path in models.values()]
    async with running_service(tmp_path, roots, launcher) as service:
        await service.finetune("tuned", models["qwen2"], {1: adapters[0]})
        caller = service.caller()
        found = await asyncio.gather(*(caller.ask("tuned") for _ in range(4)))
        assert len({told.text for told in found}) == 1
        cached = list((service.directory / "work" / "generation-cache").glob("*/adapter_config.json"))
        assert len(cached) == 1
        assert len(pids(service)) == 1
        shutil.rmtree(service.directory / "objects")
        await caller.ask("tuned")  # nothing of it is read again
