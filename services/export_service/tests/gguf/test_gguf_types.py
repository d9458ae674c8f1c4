"""Types of GGUF files: the bytes are those of llama.cpp's own quantizer; what cannot be is refused before anything is
written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from export_service.formats import FORMATS
from export_service.gguf import FILE_TYPES, GgufJob, GgufNotPossible, problems, write
from export_service.gguf.importance import importance
from export_service.gguf.job import tokenizer_of
from export_service.gguf.mixing import mix
from export_service.gguf.outline import Outline
from export_service.gguf.process import Limits, ProcessFailed, run
from modelkit.loading import load_config
from modelkit.merging import merge
from services.export_service.tests.gguf.small_models import CORPUS, field, read_tensors, small_model
from services.modelkit.tests.adapted import adapt, stored_as

DIRECT = [name for name, kind in FILE_TYPES.items() if kind.direct]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with rows of 256 and tied embeddings."""
    return small_model(tmp_path_factory.mktemp("wide") / "base", "qwen2", hidden_size=256)


@pytest.fixture(scope="module")
def config(wide: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((wide / "config.json").read_text())
    return loaded


def test_every_type_is_known() -> None:
    assert {item.quantization for item in FORMATS if item.quantization} == FILE_TYPES.keys()


@pytest.mark.parametrize(("family", "hidden_size"), [("llama", 64), ("qwen2", 256), ("phi3", 256)])
def test_direct_types_equal_llama_cpps_quantizer(tmp_path: Path, family: str, hidden_size: int) -> None:
    base = small_model(tmp_path / "base", family, hidden_size=hidden_size)
    paths = write(GgufJob(base, None, tmp_path / "out", "m", DIRECT))
    assert [path.name for path in paths] == [f"m-{name}.gguf" for name in DIRECT]
    for name, path in zip(DIRECT, paths, strict=True):
        mix(paths[0], tmp_path / "theirs.gguf", FILE_TYPES[name])
        assert read_tensors(path) == read_tensors(tmp_path / "theirs.gguf"), name
        assert field(path, "general.file_type") == int(FILE_TYPES[name].number)


def test_an_adapter_is_merged_as_the_merge_does(tmp_path: Path, wide: Path) -> None:
    base = stored_as(wide, tmp_path / "base", dtype=torch.bfloat16, max_shard_size="1MB")
    adapt(base, tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    (ours,) = write(GgufJob(base, tmp_path / "adapter", tmp_path / "out", "ours", ["Q8_0"]))
    (theirs,) = write(GgufJob(tmp_path / "merged", None, tmp_path / "out", "theirs", ["Q8_0"]))
    assert read_tensors(ours) == read_tensors(theirs)


def test_mixed_types_and_an_importance_matrix(tmp_path: Path, wide: Path) -> None:
    adapt(wide, tmp_path / "adapter")
    heard: list[tuple[float, str]] = []
    job = GgufJob(wide, tmp_path / "adapter", tmp_path / "out", "m", ["Q4_K_M", "IQ2_M", "Q8_0"], CORPUS[:1])
    paths = write(job, lambda share, text: heard.append((share, text)))
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "out").iterdir())
    kinds = {kind for kind, _ in read_tensors(paths[0]).values()}
    assert {"Q4_K", "Q6_K", "F32"} <= kinds
    assert {"IQ2_S", "IQ3_S"} <= {kind for kind, _ in read_tensors(paths[1]).values()}
    assert [share for share, _ in heard] == sorted(share for share, _ in heard)
    assert heard[-1][0] == 1.0


def test_whoever_asks_for_an_end_gets_it_and_nothing_is_left(tmp_path: Path, wide: Path) -> None:
    class Enough(Exception):
        pass

    def progress(_share: float, text: str) -> None:
        if text == "quantizing to IQ2_M":
            raise Enough

    with pytest.raises(Enough):
        write(GgufJob(wide, None, tmp_path / "out", "m", ["Q8_0", "IQ2_M"], CORPUS[:1]), progress)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m-Q8_0.gguf"]


def test_a_process_ends_when_somebody_asks(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys, time\nprint(sys.stdin.read())\nsys.stdout.flush()\ntime.sleep(600)")
    asked = []

    def tick() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        run(program, {"a": 1}, Limits(tick=tick))
    with pytest.raises(ProcessFailed, match="more than 0 s"):
        run(program, {}, Limits(seconds=0.1))
    program.write_text("raise SystemExit('no good')")
    with pytest.raises(ProcessFailed, match="no good"):
        run(program, {}, Limits())


def test_importance_is_the_mean_square_of_what_comes_in(wide: Path) -> None:
    outline = Outline(load_config(wide).to_dict())
    found = importance(wide, None, outline, tokenizer_of(wide, None), CORPUS[:1])
    matrices = {name for name, (_, data) in found_tensors(wide).items()}
    assert found.keys() == matrices
    assert all(np.isfinite(values).all() and (values > 0).all() for values in found.values())
    assert np.array_equal(found["blk.0.attn_q.weight"], found["blk.0.attn_k.weight"])
    assert not np.array_equal(found["blk.0.attn_q.weight"], found["blk.1.attn_q.weight"])


def test_computing_importance_ends_when_asked(wide: Path) -> None:
    outline, rows = Outline(load_config(wide).to_dict()), ["one", "two", "three"]
    heard: list[int] = []

    def tick() -> None:
        heard.append(1)
        if len(heard) == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        importance(wide, None, outline, tokenizer_of(wide, None), rows, tick=tick)
    assert len(heard) == 2


def found_tensors(base: Path) -> dict[str, tuple[str, int]]:
    """The matrices within layers, as llama.cpp calls them."""
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    return {f"blk.{layer}.{name}.weight": (name, layer) for layer in range(2) for name in names}


def test_unknown_families_and_types(config: dict[str, Any]) -> None:
    assert "'bloom' cannot be converted" in problems({**config, "model_type": "bloom"}, ["Q8_0"], has_text=True)[0]
    assert "'Q9' is not a type" in problems(config, ["Q9"], has_text=True)[0]
    assert problems(config, list(FILE_TYPES), has_text=True) == []


def test_rows_and_texts_that_a_type_wants(config: dict[str, Any]) -> None:
    narrow = {**config, "hidden_size": 320, "num_attention_heads": 5, "head_dim": 64}
    (problem,) = problems(narrow, ["Q4_K_M"], has_text=False)
    assert "divisible by 256" in problem
    assert "hidden_size 320" in problem
    assert problems(narrow, ["Q8_0", "IQ4_NL", "F16"], has_text=False) == []
    (problem,) = problems(config, ["IQ1_S"], has_text=False)
    assert "training text" in problem


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"num_attention_heads": 8}, "not as wide as the model"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rope_type 'llama3'"),
    ],
)
def test_configurations_that_llama_cpp_cannot_run(config: dict[str, Any], values: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in problems({**config, **values}, ["Q8_0"], has_text=False))


@pytest.mark.parametrize(("value", "kind"), [(1e6, "F16"), (float("nan"), "Q8_0"), (float("inf"), "F32")])
def test_numbers_that_do_not_fit_leave_nothing(tmp_path: Path, value: float, kind: str) -> None:
    base = small_model(tmp_path / "base", "llama")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(GgufNotPossible, match=r"65504|finite"):
        write(GgufJob(base, None, tmp_path / "out", "m", [kind]))
    assert list((tmp_path / "out").iterdir()) == []


def test_tensors_that_llama_cpp_has_no_place_for(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "llama")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.self_attn.sinks.weight"] = np.ones(4, np.float32)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(GgufNotPossible, match="has no place for"):
        write(GgufJob(base, None, tmp_path / "out", "m", ["F16"]))
