"""Which stored files a request means, and what a model needs before it is loaded."""

from pathlib import Path
from typing import Any

import pytest

from eval_service.generation.contents import Content, Form, content_of
from eval_service.generation.memory import PROCESS_BYTES, default_limit, needed_by
from eval_service.generation.requests import wish_of
from eval_service.generation.sources import Stored, choose
from modelkit.base_models import ResolvedModel
from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound
from tunesmith.eval.v1 import eval_service_pb2 as pb
from tunesmith.task.v1 import task_pb2, task_service_pb2

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja")
WHOLE = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((*ADAPTER, "optimizer.pt", "runs/x.json"), Content(Form.ADAPTER, "", ADAPTER)),
        ((*ADAPTER, *(f"merged/{name}" for name in WHOLE)), Content(Form.ADAPTER, "", ADAPTER)),
        ((*WHOLE, "training_args.bin"), Content(Form.WHOLE, "", WHOLE)),
        (
            ("x.json", "m/config.json", "m/a.safetensors"),
            Content(Form.WHOLE, "m", ("m/config.json", "m/a.safetensors")),
        ),
        (("m.gguf", "Modelfile", "a-lora.gguf"), Content(Form.GGUF, "m.gguf", ("m.gguf",))),
    ],
)
def test_what_is_fetched_of_what_is_stored(paths: tuple[str, ...], expected: Content) -> None:
    assert content_of(paths) == expected


def test_stored_files_without_a_model() -> None:
    for paths in (("report.json",), ("config.json",), ("a-lora.gguf",)):
        with pytest.raises(FailedPrecondition) as caught:
            content_of(paths)
        assert caught.value.reason == "NO_MODEL_STORED"
    with pytest.raises(NotFound, match=r"there are: a\.gguf"):
        content_of(("a.gguf",), "b.gguf")


def source(**checkpoints: str) -> task_service_pb2.TaskSource:
    found = task_service_pb2.TaskSource(task_id="t")
    found.spec.finetune.base_model = "llama"
    found.spec.finetune.language_model.SetInParent()
    for number, prefix in checkpoints.items():
        found.checkpoints.add(step=int(number[1:]), prefix=prefix, manifest_sha256=f"sha of {prefix}")
    return found


def test_the_newest_run_wins_and_the_final_model_is_a_step_too() -> None:
    found = source(s1="one", s2="two")
    found.checkpoints.add(step=1, prefix="one of the second run")
    assert choose(pb.GenerateRequest(task_id="t", checkpoint_step=2), found).stored == Stored("two", "sha of two")
    assert choose(pb.GenerateRequest(task_id="t", checkpoint_step=1), found).stored == Stored("one of the second run")
    found.output.prefix, found.output.step = "final", 9
    for step in (0, 9):
        choice = choose(pb.GenerateRequest(task_id="t", checkpoint_step=step), found)
        assert (choice.step, choice.stored) == (9, Stored("final"))


def test_what_does_not_go_together() -> None:
    with pytest.raises(InvalidArgument, match="artifact"):
        choose(pb.GenerateRequest(task_id="t", artifact="m.gguf"), source(s1="one"))
    evaluation = task_service_pb2.TaskSource(task_id="t")
    evaluation.spec.evaluate.source_task_id = "x"
    with pytest.raises(FailedPrecondition, match="is of kind EVALUATE"):
        choose(pb.GenerateRequest(task_id="t"), evaluation)
    image = task_service_pb2.TaskSource(task_id="t")
    image.spec.finetune.image_classifier.SetInParent()
    with pytest.raises(FailedPrecondition, match="writes no text"):
        choose(pb.GenerateRequest(task_id="t", base_model=True), image)


@pytest.mark.parametrize(
    ("state", "advice"),
    [(task_pb2.STATE_RUNNING, "is RUNNING; wait"), (task_pb2.STATE_FAILED, "is FAILED; it has left no model")],
)
def test_an_export_without_files_says_whether_waiting_helps(state: Any, advice: str) -> None:
    export = task_service_pb2.TaskSource(task_id="t", state=state)
    export.spec.export.source_task_id = "x"
    with pytest.raises(FailedPrecondition, match=advice):
        choose(pb.GenerateRequest(task_id="t"), export)


def test_defaults_and_what_switches_off() -> None:
    message = pb.Message(role="user", content="x")
    wish: Any = wish_of(pb.GenerateRequest(task_id="t", messages=[message]))
    assert wish["max_tokens"] == 256
    assert (wish["sampling"]["temperature"], wish["sampling"]["repetition_penalty"]) == (0.7, 1.1)
    request = pb.GenerateRequest(task_id="t", messages=[message], temperature=0.0, repetition_penalty=0.0, top_k=0)
    sampling: Any = wish_of(request)["sampling"]
    assert (sampling["temperature"], sampling["repetition_penalty"], sampling["top_k"]) == (0.0, 1.0, 0)


def test_memory_is_weights_conversations_and_process() -> None:
    config = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 3, "hidden_size": 64}
    model = ResolvedModel("m", Path("m"), "llama", "L", "", 1000, 4000, "float32", config)
    token = 2 * 3 * 2 * 8 * 4
    assert needed_by(model, 100, 1) == 1000 * 4 + token * 100 + PROCESS_BYTES
    assert needed_by(model, 100, 5) == 1000 * 4 + token * 500 + PROCESS_BYTES
    config["max_position_embeddings"] = 40
    assert needed_by(model, 100, 5) == 1000 * 4 + token * 200 + PROCESS_BYTES
    assert default_limit() > 1 << 28
