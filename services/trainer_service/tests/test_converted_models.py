"""A base model that must be converted first: described at submit, converted by the one who trains (F10)."""

from pathlib import Path

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.inspection import inspect
from modelkit.paths import AllowedRoots
from services.modelkit.tests.chatglm_checkpoints import checkpoint, configuration, sentencepiece_model
from trainer_service.checks import SpecChecks
from tunesmith.task.v1 import spec_pb2
from workerkit.datasets import DatasetChecks

__all__ = ["sentencepiece_model"]


def test_only_who_trains_waits_for_the_conversion(tmp_path: Path, sentencepiece_model: Path) -> None:
    checkpoint(tmp_path / "data" / "THUDM" / "chatglm3-6b", sentencepiece_model, configuration())
    (tmp_path / "data" / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    roots = AllowedRoots([tmp_path / "data"])
    models = BaseModels(roots, conversions=DataCache(tmp_path / "converted"))
    checks = SpecChecks(roots, models, DatasetChecks(DataCache(tmp_path / "cache")))
    spec = spec_pb2.TaskSpec(
        finetune=spec_pb2.FinetuneSpec(
            base_model="THUDM/chatglm3-6b",
            dataset=spec_pb2.DatasetSource(path="train.jsonl"),
            language_model=spec_pb2.LanguageModelParameters(
                max_seq_length=64, lora=spec_pb2.LoraParameters(target_modules=["q_proj", "gate_up_proj"])
            ),
        )
    )
    checked = checks.check(spec)
    assert checked.problems == []
    assert not (tmp_path / "converted").exists()
    trained = checks.check(spec, task_id="t1").model_dir
    assert trained is not None
    assert trained.parent == tmp_path / "converted"
    assert inspect(trained).problems == []
    spec.finetune.language_model.lora.target_modules.append("query_key_value")
    (problem,) = checks.check(spec).problems
    assert problem.message.startswith("the model has no query_key_value; it has down_proj")
