"""Job files: defaults are those of the contract, and everything wrong is listed at once (faults 51)."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from trainer_service.recipes.config import Columns, Finetune, Job, LanguageModel, Lora, Quantization, Training
from trainer_service.recipes.support import OPTIMIZERS, RECIPES, unfit, unsupported, without_effect
from tunesmith.task.v1 import spec_pb2
from workerkit.child.errors import InvalidJob

PROTO = Path(__file__).parents[4] / "protos" / "tunesmith" / "task" / "v1" / "spec.proto"
MESSAGES: dict[str, Any] = {
    "TrainingParameters": Training(),
    "LanguageModelParameters": LanguageModel(),
    "LoraParameters": Lora(),
    "QuantizationParameters": Quantization(),
}
DERIVED = {"per_device_eval_batch_size", "eval_steps", "lr_scheduler_num_cycles", "labels", "tokenizer_path"}


def documented_defaults(message: str) -> dict[str, str]:
    """The "Default X." of each field's comment."""
    body = PROTO.read_text().split(f"message {message} {{")[1].split("\n}")[0]
    found = re.findall(r"((?:  //[^\n]*\n)+)  (?:optional |repeated )?\w+ (\w+) = \d+", body)
    defaults = {}
    for comment, name in found:
        if match := re.search(r"Default:? (.+?)\.?(?: |$)", " ".join(comment.split("//"))):
            defaults[name] = match.group(1).strip('". ,')
    return defaults


@pytest.mark.parametrize("message", MESSAGES)
def test_defaults_are_those_that_the_contract_states(message: str) -> None:
    config = MESSAGES[message]
    described = spec_pb2.DESCRIPTOR.message_types_by_name[message]
    assert {field.name for field in fields(config)} == {field.name for field in described.fields}
    stated = {name: value for name, value in documented_defaults(message).items() if name not in DERIVED}
    assert len(stated) >= 3
    for name, value in stated.items():
        own = getattr(config, name)
        assert value == (str(own).lower() if isinstance(own, bool) else str(own)) or float(value) == own, name


def test_column_names_are_those_of_the_contract() -> None:
    described = spec_pb2.DESCRIPTOR.message_types_by_name["DatasetColumns"]
    assert {field.name for field in fields(Columns)} == {field.name for field in described.fields}


def test_a_whole_proto_specification_is_understood() -> None:
    spec = spec_pb2.FinetuneSpec(base_model="m", dataset=spec_pb2.DatasetSource(path="/d"))
    spec.training.num_train_epochs = 2
    spec.training.save_strategy = spec_pb2.INTERVAL_STRATEGY_EPOCH
    spec.training.max_steps = -1
    spec.training.fp16 = True
    spec.language_model.method = spec_pb2.METHOD_FULL
    spec.language_model.lora.target_modules.append("q_proj")
    spec.training.stall_action = spec_pb2.WATCH_ACTION_STOP
    spec.training.overfitting_action = spec_pb2.WATCH_ACTION_UNSPECIFIED
    spec.training.parallelism = spec_pb2.PARALLELISM_FULLY_SHARDED
    spec.dataset.columns.prompt = "question"
    spec.resume_from_checkpoint = "/c/checkpoint-5"
    parsed = Finetune.parse(MessageToDict(spec, preserving_proto_field_name=True))
    assert parsed.training == Training(
        num_train_epochs=2.0, save_strategy="EPOCH", fp16=True, stall_action="STOP", parallelism="FULLY_SHARDED"
    )
    assert (parsed.columns, parsed.resume_from_checkpoint) == (Columns(prompt="question"), "/c/checkpoint-5")
    assert parsed.language_model == LanguageModel(method="FULL", lora=Lora(target_modules=("q_proj",)))
    assert parsed.modality == "language_model"


def test_everything_wrong_is_listed_at_once() -> None:
    spec = {
        "training": {"learning_rate": "NaN", "epochs": 3, "fp16": 1, "seed": 1.5, "optim": None},
        "language_model": {"lora": {"rank": 8, "target_modules": [1]}, "max_seq_length": True},
    }
    with pytest.raises(InvalidJob) as caught:
        Finetune.parse(spec)
    assert sorted(problem.split()[0] for problem in caught.value.problems) == [
        "language_model.lora.rank",
        "language_model.lora.target_modules",
        "language_model.max_seq_length",
        "training.epochs",
        "training.fp16",
        "training.learning_rate",
        "training.optim",
        "training.seed",
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"spec": []}', "nonsense", '{"spec": {"training": 3}}'])
def test_job_files_that_cannot_be_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(InvalidJob):
        Job.load(tmp_path)
    with pytest.raises(InvalidJob):
        Job.load(tmp_path / "gone")


def finetune(**changes: Any) -> spec_pb2.FinetuneSpec:
    content: dict[str, Any] = {"base_model": "m", "dataset": {"path": "/d"}, "language_model": {}, **changes}
    from google.protobuf.json_format import ParseDict

    return ParseDict(content, spec_pb2.FinetuneSpec())


def test_what_can_be_trained_has_no_problems() -> None:
    assert unsupported(finetune()) == []
    for optimizer in OPTIMIZERS:
        assert unsupported(finetune(training={"optim": optimizer})) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (
            {"language_model": {"objective": "OBJECTIVE_CLASSIFICATION", "packing": True}},
            "finetune.language_model.packing",
        ),
        ({"language_model": {"labels": ["one"]}}, "finetune.language_model.labels"),
        ({"training": {"optim": "adam_and_eve"}}, "finetune.training.optim"),
        (
            {"training": {"optim": "lomo", "gradient_accumulation_steps": 2}},
            "finetune.training.gradient_accumulation_steps",
        ),
        ({"training": {"optim": "lomo", "fp16": True}}, "finetune.training.fp16"),
        ({"training": {"optim": "lomo"}, "devices": {"processes": 2}}, "finetune.training.optim"),
        (
            {
                "training": {"optim": "galore_adamw", "parallelism": "PARALLELISM_FULLY_SHARDED"},
                "devices": {"cuda_visible_devices": "0,1"},
            },
            "finetune.training.optim",
        ),
        (
            {
                "training": {"parallelism": "PARALLELISM_FULLY_SHARDED"},
                "language_model": {"method": "METHOD_QLORA"},
                "devices": {"processes": 2},
            },
            "finetune.training.parallelism",
        ),
        ({"training": {"lr_scheduler_type": "polynomial", "learning_rate": 1e-7}}, "finetune.training.learning_rate"),
        ({"training": {"lr_scheduler_type": "zigzag"}}, "finetune.training.lr_scheduler_type"),
        ({"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}}, "finetune.training.lr_scheduler_type"),
        ({"training": {"early_stopping_patience": 2}}, "finetune.training.early_stopping_patience"),
        ({"training": {"fp16": True, "bf16": True}}, "finetune.training.fp16"),
    ],
)
def test_what_cannot_be_trained_is_named_by_its_field(spec: dict[str, Any], field: str) -> None:
    assert [problem.field for problem in unsupported(finetune(**spec))] == [field]


def test_quantization_is_never_passed_over() -> None:
    """Without a method it means QLoRA; with another one it is a problem."""
    quantized = spec_pb2.QuantizationParameters(type="int8")
    spec = spec_pb2.FinetuneSpec(language_model=spec_pb2.LanguageModelParameters(quantization=quantized))
    assert without_effect(spec) == []
    assert Finetune.parse(MessageToDict(spec, preserving_proto_field_name=True)).language_model.method == "QLORA"
    for method, count in ((spec_pb2.METHOD_QLORA, 0), (spec_pb2.METHOD_LORA, 1), (spec_pb2.METHOD_FULL, 1)):
        spec.language_model.method = method
        found = without_effect(spec)
        assert [problem.field for problem in found] == count * ["finetune.language_model.quantization"]
        assert unsupported(spec) == []


@pytest.mark.parametrize("modality", ["image_classifier", "object_detector", "text_to_image"])
def test_other_modalities_are_told_apart(modality: str) -> None:
    spec = spec_pb2.FinetuneSpec(base_model="m")
    getattr(spec, modality).SetInParent()
    (problem,) = unsupported(spec)
    assert problem.field == f"finetune.{modality}"
    assert modality not in RECIPES


def test_what_a_model_cannot_do_is_told_before_it_is_loaded() -> None:
    spec = finetune(language_model={"max_seq_length": 4096, "lora": {"r": 128}})
    config = {"hidden_size": 64, "max_position_embeddings": 2048}
    fields_ = [problem.field for problem in unfit(spec, config)]
    assert fields_ == ["finetune.language_model.lora.r", "finetune.language_model.max_seq_length"]


def test_what_a_family_does_not_have_is_told_before_it_is_loaded() -> None:
    layers = {"query_key_value", "dense"}
    spec = finetune(language_model={"lora": {"target_modules": ["q_proj", "attention.dense"]}})
    (problem,) = unfit(spec, {}, layers)
    assert problem.field == "finetune.language_model.lora.target_modules"
    assert problem.message == "the model has no q_proj; it has dense, lm_head, query_key_value"
    output_layer = finetune(language_model={"lora": {"target_modules": ["lm_head"]}})
    assert unfit(output_layer, {}, layers) == []
    assert unfit(finetune(language_model={"method": "METHOD_FULL"}), {}, layers) == []
    classification = finetune(language_model={"objective": "OBJECTIVE_CLASSIFICATION"})
    assert unfit(classification, {"model_type": "llama"}) == []
    (problem,) = unfit(classification, {"model_type": "codegen"})
    assert problem.field == "finetune.language_model.objective"
    assert unfit(spec, {"hidden_size": 4096, "max_position_embeddings": 8192}) == []


def test_the_check_imports_no_training_library() -> None:
    script = (
        "import sys, trainer_service.recipes.support, trainer_service.recipes.entry\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_relative_paths_are_beneath_the_job(tmp_path: Path) -> None:
    job = {"spec": {}, "model_dir": "m", "train_file": "/abs/t.jsonl", "work_dir": ".", "output_dir": "out"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    loaded = Job.load(tmp_path)
    assert (loaded.model_dir, loaded.train_file) == (tmp_path / "m", Path("/abs/t.jsonl"))
