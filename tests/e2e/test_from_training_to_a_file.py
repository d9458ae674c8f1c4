"""Train, compare the checkpoints, talk to the model, export it, fetch the file, run it there.

T26, T31, M8-M10, M16, M17.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from modelkit.checkpoints import sha256_of
from tests.support.platform import Platform, Workload
from tunesmith.client import Client, evaluation_request, export_request, generation_request
from tunesmith.client.export import FORMATS
from tunesmith.eval.v1.eval_service_pb2 import Message
from tunesmith.task.v1.spec_pb2 import METHOD_LORA, METHOD_QLORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, Task

STEPS, SAVE_STEPS = 8, 4
QUESTION = "What is abc?"


@pytest.fixture(scope="module")
def trained(platform: Platform, workload: Workload) -> Task:
    """A task with two checkpoints and an adapter."""
    with platform.client() as client:
        request = workload.request("to be exported", method=METHOD_LORA, max_steps=STEPS, save_steps=SAVE_STEPS)
        task = client.tasks.wait(client.tasks.create(request).id)
        assert task.state == STATE_COMPLETED, task.error
        return task


def completed(client: Client, request: Any) -> Task:
    task = client.tasks.wait(client.tasks.create(request).id)
    assert task.state == STATE_COMPLETED, task.error
    return task


def test_checkpoints_are_compared_with_the_base(
    client: Client, trained: Task, workload: Workload, tmp_path: Path
) -> None:
    parameters = {"max_samples": 5, "max_tokens": 8}
    data = str(workload.dataset)
    request = evaluation_request("scores", trained.id, (), parameters, base_model=True, dataset=data)
    task = completed(client, request)
    found = client.evaluations.get(task.id)
    assert [item.base_model for item in found.checkpoints] == [True, *[False] * (len(found.checkpoints) - 1)]
    assert {SAVE_STEPS, STEPS} <= {item.step for item in found.checkpoints}
    assert all("perplexity" in item.scores for item in found.checkpoints)
    assert found.recommendation.text
    for name in ("report.json", "report.csv", "report.html", "samples.csv"):
        path = client.evaluations.download(task.id, name, tmp_path)
        assert path.read_bytes() == (Path(task.output_dir) / name).read_bytes()
    assert len(json.loads((tmp_path / "report.json").read_text())["rows_scored"]) == 5


def test_the_model_answers_and_so_does_each_checkpoint(client: Client, trained: Task) -> None:
    parameters = {"max_tokens": 8, "temperature": 0.0}
    for step in (0, SAVE_STEPS):
        request = generation_request(trained.id, QUESTION, parameters, checkpoint_step=step)
        pieces = list(client.generate(request))
        assert pieces[-1].finish_reason in ("stop", "length")
        assert 0 < pieces[-1].usage.completion_tokens <= 8


def test_a_checkpoint_is_tested_in_a_live_conversation(client: Client, trained: Task) -> None:
    """M9, M16: a checkpoint is chosen and answers piece by piece, each turn builds on those before."""
    for step in (SAVE_STEPS, STEPS):
        turns, read = [Message(role="system", content="Be brief."), Message(role="user", content=QUESTION)], 0
        for _ in range(2):
            parameters = {"max_tokens": 12, "temperature": 0.0}
            pieces = list(client.generate(generation_request(trained.id, turns, parameters, checkpoint_step=step)))
            assert [bool(piece.finish_reason) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
            assert pieces[-1].usage.completion_tokens > 1
            assert sum(1 for piece in pieces if piece.text) > 1, "the answer came in one piece"
            assert pieces[-1].usage.prompt_tokens > read
            read = pieces[-1].usage.prompt_tokens
            answer = "".join(piece.text for piece in pieces)
            turns += [Message(role="assistant", content=answer), Message(role="user", content="And then?")]
        assert (trained.id, step) in [(model.task_id, model.checkpoint_step) for model in client.loaded_models()]


def test_one_choice_makes_a_package_that_answers(client: Client, trained: Task) -> None:
    """M10: what is offered first becomes a GGUF file by one request, and answers where it was made."""
    template = next(item for item in client.exports.templates() if item.is_default)
    form = next(word for word, form in FORMATS.items() if form == template.format)
    task = completed(client, export_request("package", trained.id, form, template.quantizations))
    artifacts = {item.name for item in client.exports.get(task.id).artifacts}
    (file,) = (name for name in artifacts if name.endswith(".gguf"))
    assert template.quantizations[0] in file
    request = generation_request(task.id, QUESTION, {"max_tokens": 8, "temperature": 0.0}, artifact=file)
    answer = list(client.generate(request))[-1]
    assert answer.finish_reason in ("stop", "length") and answer.usage.completion_tokens > 0


def test_a_file_runs_elsewhere(client: Client, trained: Task, tmp_path: Path) -> None:
    from llama_cpp import Llama

    task = completed(client, export_request("gguf", trained.id, "gguf", ["Q8_0"]))
    found = client.exports.get(task.id)
    assert found.checks
    assert all(check.passed for check in found.checks)
    (artifact,) = [item for item in found.artifacts if item.name.endswith(".gguf")]
    path = client.exports.download(task.id, artifact.name, tmp_path)
    assert (path.stat().st_size, sha256_of(path)) == (artifact.size, artifact.sha256)
    model: Any = Llama(str(path), n_ctx=256, verbose=False)
    answer = model.create_chat_completion([{"role": "user", "content": QUESTION}], max_tokens=8, temperature=0.0)
    model.close()
    assert answer["usage"]["completion_tokens"] > 0


def test_the_adapter_travels_as_a_zip(client: Client, trained: Task, tmp_path: Path) -> None:
    task = completed(client, export_request("adapter", trained.id, "adapter"))
    path = client.exports.download(task.id, "", tmp_path)
    assert path.name == f"lora_adapter_{trained.id}.zip"


def test_an_adapter_of_a_quantized_training_is_used_on_the_unquantized_base(client: Client, workload: Workload) -> None:
    request = workload.request("quantized", method=METHOD_QLORA, max_steps=SAVE_STEPS, save_steps=SAVE_STEPS)
    trained = completed(client, request)
    merged = completed(client, export_request("merged", trained.id, "merged"))
    checks = client.exports.get(merged.id).checks
    assert {check.name for check in checks} >= {"logits", "perplexity"}
    assert all(check.passed for check in checks)
    for task in (trained, merged):
        question = generation_request(task.id, QUESTION, {"max_tokens": 8, "temperature": 0.0})
        assert list(client.generate(question))[-1].usage.completion_tokens > 0
