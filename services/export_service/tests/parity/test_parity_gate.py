"""The gate lets exports through that compute what was trained, and stops those that do not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from export_service.gguf import GgufJob, tensors, write, write_adapter
from export_service.parity import Check, check, reference
from export_service.parity.checks import FORMS
from export_service.parity.conversations import differences, writing_in, writing_of
from export_service.parity.gate import _difference, _others
from modelkit import scratch
from modelkit.loading import load_tokenizer
from modelkit.merging import merge
from services.export_service.tests.gguf.small_models import small_model
from services.modelkit.tests.adapted import adapt

ADD_BOS = b"tokenizer.ggml.add_bos_token\7\0\0\0"  # with the type of its value, which follows
PROMPTS = ["What is two and two?", "用中文说一句话。"]


class Export:
    """A base, an adapter on it, and the two merged."""

    def __init__(self, folder: Path) -> None:
        self.base = small_model(folder / "base", "llama", hidden_size=256)
        self.adapter, self.merged = folder / "adapter", folder / "merged"
        adapt(self.base, self.adapter)
        merge(self.base, self.adapter, self.merged)

    def files(self, target: Path, *types: str, adapter: bool = True) -> list[Path]:
        """GGUF files of it."""
        return write(GgufJob(self.base, self.adapter if adapter else None, target, "m", list(types)))

    def check(self, *files: Path, merged: Path | None = None) -> list[Check]:
        """What the gate says."""
        return check(self.base, self.adapter, merged, list(files), PROMPTS)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(tmp_path_factory.mktemp("export"))


def failed(checks: list[Check]) -> set[str]:
    """Names of checks that failed."""
    return {item.name for item in checks if not item.passed}


def test_every_type_has_limits() -> None:
    from export_service.gguf import FILE_TYPES

    assert FORMS.keys() == FILE_TYPES.keys()


def test_a_good_export_passes(tmp_path: Path, export: Export) -> None:
    heard: list[float] = []
    files = export.files(tmp_path, "F32", "F16", "Q8_0", "Q4_K_M")
    checks = check(
        export.base, export.adapter, export.merged, files, PROMPTS, progress=lambda share, _: heard.append(share)
    )
    assert [item.text for item in checks if not item.passed] == []
    by_artifact = {item.artifact for item in checks}
    assert by_artifact == {"merged", *(file.name for file in files)}
    assert {item.name for item in checks if item.artifact == "m-Q8_0.gguf"} == {
        *("weights", "template", "logits", "greedy_tokens", "perplexity")
    }
    assert heard == sorted(heard)
    logits = {item.artifact: item.value for item in checks if item.name == "logits"}
    assert logits["m-F32.gguf"] < logits["m-F16.gguf"] < logits["m-Q8_0.gguf"] < logits["m-Q4_K_M.gguf"]


def test_an_export_without_the_adapter_is_stopped(tmp_path: Path, export: Export) -> None:
    checks = export.check(*export.files(tmp_path, "Q8_0", adapter=False))
    assert failed(checks) >= {"weights", "logits"}


def test_swapped_tensors_are_stopped(tmp_path: Path, export: Export) -> None:
    (file,) = export.files(tmp_path, "Q8_0")
    swap(file, "blk.0.ffn_up.weight", "blk.0.ffn_gate.weight")
    checks = export.check(file)
    assert failed(checks) >= {"weights", "logits"}
    worst = next(item for item in checks if item.name == "weights")
    assert "blk.0.ffn_" in worst.text
    assert worst.value > 10


def test_heads_that_are_not_reordered_are_stopped(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "in_pairs", lambda rows, _width: rows)
    (file,) = export.files(tmp_path, "F16")
    assert "logits" in failed(export.check(file)), "the mapping itself is wrong, so the weights look right"
    monkeypatch.undo()
    assert failed(export.check(file)) >= {"weights", "logits"}


def test_another_tokenizer_is_stopped(tmp_path: Path, export: Export) -> None:
    other = tmp_path / "other"
    shutil.copytree(export.adapter, other)
    spec = json.loads((export.base / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-200]
    (other / "tokenizer.json").write_text(json.dumps(spec))
    shutil.copyfile(export.base / "tokenizer_config.json", other / "tokenizer_config.json")
    (file,) = write(GgufJob(export.base, other, tmp_path, "m", ["F16"]))
    assert failed(export.check(file)) == {"template"}


def template_check(export: Export, file: Path) -> Check:
    """What the gate says of a file's template, whose other checks pass."""
    checks = export.check(file)
    assert failed(checks) <= {"template"}
    return next(item for item in checks if item.name == "template")


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        (b"tokenizer.chat_template", b"tokenizer.chat_nothing_", "the chat template is missing"),
        (b"<|start_header_id|>", b"<|start_header_no|>", "a conversation is written"),
        (ADD_BOS + b"\0", ADD_BOS + b"\1", "texts get a first token"),
    ],
)
def test_another_template_is_stopped(tmp_path: Path, export: Export, left: bytes, right: bytes, told: str) -> None:
    (file,) = export.files(tmp_path, "F16")
    assert template_check(export, file).passed
    content = file.read_bytes()
    at = content.index(left, content.index(b"tokenizer.chat_template") if b"header" in left else 0)
    file.write_bytes(content[:at] + right + content[at + len(left) :])
    found = template_check(export, file)
    assert not found.passed
    assert told in found.text


@pytest.mark.parametrize("family", sorted(scratch.FAMILIES))
def test_every_familys_conversations_are_written_the_same(tmp_path: Path, family: str) -> None:
    base = small_model(tmp_path / "base", family, hidden_size=32)
    (file,) = write(GgufJob(base, None, tmp_path, "m", ["F16"]))
    wanted = writing_of(load_tokenizer(base))
    assert list(differences(wanted, writing_in(file), PROMPTS)) == []
    assert all(wanted.texts(PROMPTS)[: len(PROMPTS)])


def test_a_template_that_is_altered_where_a_reply_ends_is_stopped(tmp_path: Path, export: Export) -> None:
    other = shutil.copytree(export.merged, tmp_path / "merged")
    tokenizer: Any = load_tokenizer(other)
    tokenizer.chat_template = "{% if messages | length > 1 %}more{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(other)
    checks = export.check(merged=other)
    assert failed(checks) == {"template"}
    assert "a conversation is written 'more<|begin_of_text|>" in next(item.text for item in checks if not item.passed)


def test_a_template_that_names_tokens_which_the_tokenizer_has_not(tmp_path: Path, export: Export) -> None:
    base = shutil.copytree(export.base, tmp_path / "base")
    tokenizer: Any = load_tokenizer(base)
    tokenizer.chat_template = "{{ bos_token }}\n{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.bos_token = None
    tokenizer.save_pretrained(base)
    assert load_tokenizer(base).bos_token is None
    (file,) = write(GgufJob(base, None, tmp_path, "m", ["F16"]))
    assert failed(check(base, None, None, [file], PROMPTS)) == set()


def test_a_damaged_file_is_stopped(tmp_path: Path, export: Export) -> None:
    (file,) = export.files(tmp_path, "F16")
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    checks = export.check(file)
    assert "logits" in failed(checks)


def test_a_merged_model_that_computes_something_else_is_stopped(tmp_path: Path, export: Export) -> None:
    other = shutil.copytree(export.merged, tmp_path / "merged")
    change(other, lambda weights: np.negative(weights, out=weights))
    checks = export.check(merged=other)
    assert failed(checks) >= {"logits", "greedy_tokens"}


def test_an_adapters_file_is_compared_on_its_base(tmp_path: Path, export: Export) -> None:
    good = write_adapter(export.base, export.adapter, tmp_path / "checkpoint-lora.gguf")
    assert failed(export.check(good)) == set()
    adapt(export.base, tmp_path / "other", seed=2)
    other = write_adapter(export.base, tmp_path / "other", tmp_path / "other-lora.gguf")
    assert "logits" in failed(export.check(other))


def test_a_model_that_memory_is_too_small_for_is_compared_in_bfloat16(export: Export) -> None:
    assert reference.compute_type(10**6) == torch.float32
    assert reference.compute_type(10**15) == torch.bfloat16
    model = reference.adapted_model(export.base, export.adapter, torch.bfloat16)
    assert model.dtype == torch.bfloat16


def test_a_merged_classifier(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "qwen2")
    adapt(base, tmp_path / "adapter", labels=("good", "bad", "neither"))
    (tmp_path / "adapter" / "labels.json").write_text('["good", "bad", "neither"]')
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    checks = check(base, tmp_path / "adapter", tmp_path / "merged", [], PROMPTS)
    assert failed(checks) == set()
    assert {item.name for item in checks} == {"logits", "greedy_tokens", "template"}


def test_ties_are_no_other_tokens() -> None:
    wanted = np.array([[[1.0, 0.999, 0.0]]], np.float32)
    got = np.array([[[0.9, 1.0, 0.0]]], np.float32)
    assert _others(got, wanted, margin=0.01) == 0
    assert _others(got, wanted, margin=0.0) == 1
    error, scale = _difference(wanted + 5, wanted)
    assert error == pytest.approx(0, abs=1e-6)
    assert scale > 0


def swap(file: Path, left: str, right: str) -> None:
    """Exchanges the bytes of two tensors of one size."""
    found = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    places = [(int(found[name].data_offset), found[name].data.tobytes()) for name in (left, right)]
    with file.open("r+b") as opened:
        for (offset, _), (_, data) in zip(places, reversed(places), strict=True):
            opened.seek(offset)
            opened.write(data)


def change(directory: Path, what: Callable[[np.ndarray], object]) -> None:
    """Changes a matrix of a model."""
    weights = load_file(directory / "model.safetensors")
    what(weights["model.layers.0.mlp.down_proj.weight"])
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
