"""What the child of an export makes of a checkpoint (rows T31, M17, F40), in this process."""

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from export_service import parity
from export_service.job import Job
from export_service.recipes import exporting
from export_service.recipes.entry import run_job
from export_service.recipes.exporting import ParityFailed, export
from export_service.results import RESULT, Result
from modelkit.checkpoints import sha256_of
from modelkit.errors import InvalidModel
from modelkit.loading import load_model
from services.export_service.tests.trained import ROWS
from services.modelkit.tests.adapted import IDS
from workerkit.child.events import EventWriter
from workerkit.child.stopping import StopRequest

# A name within transformers that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class Recorder(EventWriter):
    """Keeps events; watch sees each as it happens."""

    def __init__(self, watch: Callable[[Mapping[str, Any]], None] = lambda _: None) -> None:
        super().__init__(None)
        self.events: list[Mapping[str, Any]] = []
        self._watch = watch

    def _send(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
        self._watch(event)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


def job(folder: Path, form: str, base: Path | None, model: Path | None, **more: Any) -> Job:
    folder.mkdir(exist_ok=True)
    content = {
        "folder": folder,
        "format": form,
        "task_id": "export1",
        "source_task_id": "train1",
        "step": 8,
        "base": base,
        "model_dir": model,
        "is_adapter": True,
        "base_name": "models/tiny-llama",
        "rows": ROWS,
        **more,
    }
    made = Job(**content)
    made.write()
    return made


def result_of(job: Job) -> Result:
    return Result.from_json((job.output_dir / RESULT).read_bytes())


def test_a_job_is_read_as_it_was_written(tmp_path: Path, base: Path, adapter: Path) -> None:
    made = job(tmp_path, "gguf", base, adapter, quantizations=("Q8_0",))
    assert Job.load(tmp_path) == made


def test_an_adapter_becomes_an_archive_without_what_only_training_needs(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    made, events = job(tmp_path, "adapter", None, adapter), Recorder()
    export(tmp_path, events, StopRequest())
    result = result_of(made)
    assert [artifact.name for artifact in result.artifacts] == ["lora_adapter_train1.zip"]
    assert all(check.passed for check in result.checks)
    with zipfile.ZipFile(made.output_dir / "lora_adapter_train1.zip") as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not {"optimizer.pt", "trainer_state.json"} & names
    model: Any = PeftModel.from_pretrained(load_model(base, dtype=torch.float32), tmp_path / "unpacked")
    assert torch.isfinite(model(IDS).logits).all()


def test_a_merged_model_is_checked_and_listed(tmp_path: Path, base: Path, adapter: Path) -> None:
    made, events = job(tmp_path, "merged", base, adapter), Recorder()
    export(tmp_path, events, StopRequest())
    result = result_of(made)
    names = {artifact.name for artifact in result.artifacts}
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= names
    assert RESULT not in names
    for artifact in result.artifacts:
        assert artifact.sha256 == sha256_of(made.output_dir / artifact.name)
    assert {check.name for check in result.checks} >= {"logits", "greedy_tokens"}
    assert all(check.passed for check in result.checks)
    percents = [event["step"] for event in events.of("progress")]
    assert percents == sorted(percents) and 90 <= percents[-1] < 100, "storing is work too"
    assert events.of("done")[0]["path"] == str(made.output_dir)
    before, after = load_file(base / "model.safetensors"), load_file(made.output_dir / "model.safetensors")
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


def test_gguf_files_have_their_documented_names_and_pass(tmp_path: Path, base: Path, adapter: Path) -> None:
    made, events = job(tmp_path, "gguf", base, adapter, quantizations=("Q8_0", "F16")), Recorder()
    export(tmp_path, events, StopRequest())
    result = result_of(made)
    names = {artifact.name for artifact in result.artifacts}
    assert {"merged_model-Q8_0.gguf", "merged_model-F16.gguf"} <= names
    assert any(name.startswith("Modelfile") for name in names)
    assert {check.artifact for check in result.checks} >= {"merged_model-Q8_0.gguf", "merged_model-F16.gguf"}
    assert all(check.passed for check in result.checks)
    measured = events.of("metrics")[0]
    assert measured["step"] == 8 and "perplexity/merged_model-Q8_0.gguf" in measured["values"]


def test_a_type_that_wants_an_importance_matrix_takes_it_from_the_rows_as_the_adapter_was_trained_on_them(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    made = job(tmp_path, "gguf", base, adapter, quantizations=("IQ2_M",), modelfile=False)
    export(tmp_path, Recorder(), StopRequest())
    assert [artifact.name for artifact in result_of(made).artifacts] == ["merged_model-IQ2_M.gguf"]
    assert all(check.passed for check in result_of(made).checks)


def test_the_base_model_alone_is_named_after_it(tmp_path: Path, base: Path) -> None:
    made = job(tmp_path, "gguf_base", base, None, quantizations=("Q8_0",), modelfile=False)
    export(tmp_path, Recorder(), StopRequest())
    assert [artifact.name for artifact in result_of(made).artifacts] == ["tiny-llama-Q8_0.gguf"]


@pytest.mark.parametrize(("step", "name"), [(8, "checkpoint-8-lora.gguf"), (0, "final-lora.gguf")])
def test_an_adapter_becomes_a_gguf(tmp_path: Path, base: Path, adapter: Path, step: int, name: str) -> None:
    made = job(tmp_path, "gguf_adapter", base, adapter, step=step)
    export(tmp_path, Recorder(), StopRequest())
    assert [artifact.name for artifact in result_of(made).artifacts] == [name]


def test_a_fully_trained_model_is_handed_out_without_its_optimizer(tmp_path: Path, base: Path) -> None:
    model = tmp_path / "checkpoint-8"
    shutil.copytree(base, model)
    (model / "optimizer.pt").write_bytes(b"large")
    made = job(tmp_path / "job", "merged", None, model, is_adapter=False)
    export(tmp_path / "job", Recorder(), StopRequest())
    names = {artifact.name for artifact in result_of(made).artifacts}
    assert "model.safetensors" in names and "optimizer.pt" not in names


def test_a_base_that_has_changed_is_refused(tmp_path: Path, base: Path, adapter: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    job(tmp_path / "job", "merged", other, adapter)
    with pytest.raises(InvalidModel, match="not those that the adapter was trained on"):
        export(tmp_path / "job", Recorder(), StopRequest())
    assert not (tmp_path / "job" / "output").exists()


def test_an_adapter_without_a_record_is_told_of(tmp_path: Path, base: Path, adapter: Path) -> None:
    unknown = tmp_path / "unknown"
    shutil.copytree(adapter, unknown)
    (unknown / "trainer_state.json").unlink()
    job(tmp_path / "job", "merged", base, unknown)
    events = Recorder()
    export(tmp_path / "job", events, StopRequest())
    assert any("does not note what it was trained on" in event["text"] for event in events.of("log"))


def test_a_check_that_fails_fails_the_export_and_tells_by_how_much(
    tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "merged_model: logits 0.9, beyond the limit 0.1"
    failed = parity.Check("merged_model", "logits", 0.9, 0.1, False, text)
    monkeypatch.setattr(exporting.parity, "check", lambda *_, **__: [failed])
    made, events = job(tmp_path, "merged", base, adapter), Recorder()
    with pytest.raises(ParityFailed, match=r"1 check failed: merged_model: logits 0\.9, beyond") as caught:
        export(tmp_path, events, StopRequest())
    assert caught.value.problems == (text,)
    assert events.of("metrics")[0]["values"] == {"logits/merged_model": 0.9}
    assert not (made.output_dir / RESULT).exists() and not events.of("done")


@pytest.mark.parametrize("form", ["merged", "gguf", "adapter"])
def test_a_stop_ends_an_export_in_order(tmp_path: Path, base: Path, adapter: Path, form: str) -> None:
    stop = StopRequest()

    def watch(event: Mapping[str, Any]) -> None:
        stop.requested = stop.requested or event["type"] in ("progress", "phase")

    job(tmp_path, form, base, adapter, quantizations=("Q8_0",) if form == "gguf" else ())
    events = Recorder(watch)
    export(tmp_path, events, stop)
    assert [event["type"] for event in events.events][-1] == "stopped"
    assert not events.of("done")


def test_what_goes_wrong_becomes_one_error_event(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    with (tmp_path / "events").open("wb") as file:
        assert run_job(tmp_path, file.fileno()) == 1
    event = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert (event["type"], event["reason"]) == ("error", "INVALID_SPEC")
