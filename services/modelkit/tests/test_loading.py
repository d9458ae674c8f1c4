"""Models load from safetensors and JSON alone; nothing else in their directory takes part (faults 40, 41)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modelkit import scratch
from modelkit.errors import InvalidModel
from modelkit.loading import load_config, load_model, load_tokenizer

TEXT = Path(json.__file__).read_text()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: scratch.build(
            tmp_path_factory.mktemp(family) / "m",
            family=family,
            hidden_size=32,
            layers=2,
            vocab_size=300,
            corpus=[TEXT],
        ).directory
        for family in scratch.FAMILIES
    }


@pytest.fixture
def model_dir(pristine: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine["llama"], tmp_path / "model"))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", ["llama", "qwen2", "glm4"])
def test_loads_what_transformers_loads(pristine: dict[str, Path], family: str) -> None:
    ours = load_model(pristine[family], dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(pristine[family], dtype=torch.float32)
    expected = dict(theirs.named_parameters())
    assert expected.keys() == dict(ours.named_parameters()).keys()
    assert all(torch.equal(parameter, expected[name]) for name, parameter in ours.named_parameters())
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id
    tied = ours.get_input_embeddings().weight is ours.get_output_embeddings().weight
    assert tied == ours.config.tie_word_embeddings


def test_weights_take_the_type_asked_for(model_dir: Path) -> None:
    assert load_model(model_dir, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_shards_are_put_together(model_dir: Path) -> None:
    whole = load_model(model_dir, dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(model_dir, max_shard_size="30KB")
    (model_dir / "model.safetensors").unlink(missing_ok=True)
    assert len(list(model_dir.glob("*.safetensors"))) > 1
    sharded = load_model(model_dir, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sharded.parameters(), strict=True))


def test_code_pickles_and_adapters_beside_the_weights_are_never_used(model_dir: Path, tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (model_dir / "evil.py").write_text(trap)
    edit_config(
        model_dir,
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": "evil.T"},
        _attn_implementation_internal="evil/kernel",
        attn_implementation="evil/kernel",
        transformers_weights="pytorch_model.bin",
        unheard_of={"auto_map": 1},
    )
    (model_dir / "pytorch_model.bin").write_bytes(b"cbuiltins\nexec\n(V" + trap.encode() + b"\ntR.")
    (model_dir / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/base", "peft_type": "LORA"}')
    model = load_model(model_dir, dtype=torch.float32)
    load_tokenizer(model_dir)
    assert type(model).__module__.startswith("transformers.models.llama")
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "unheard_of")
    assert not hasattr(model.config, "auto_map")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_with_code_of_its_own_is_refused(model_dir: Path) -> None:
    path = model_dir / "tokenizer_config.json"
    settings = {
        **json.loads(path.read_text()),
        "tokenizer_class": "Own",
        "auto_map": {"AutoTokenizer": ["own.T", None]},
    }
    path.write_text(json.dumps(settings))
    (model_dir / "own.py").write_text("raise SystemExit('ran')")
    (model_dir / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidModel, match="tokenizer cannot be loaded"):
        load_tokenizer(model_dir)


def test_older_configurations_keep_their_meaning(model_dir: Path) -> None:
    path = model_dir / "config.json"
    config = json.loads(path.read_text())
    for name in ("rope_parameters", "dtype"):
        config.pop(name)
    path.write_text(json.dumps({**config, "rope_theta": 12345.0, "torch_dtype": "bfloat16", "rope_scaling": None}))
    loaded = load_config(model_dir)
    assert loaded.rope_parameters["rope_theta"] == 12345.0
    assert loaded.dtype == torch.bfloat16


def test_missing_and_misshapen_tensors_are_refused(model_dir: Path) -> None:
    path = model_dir / "model.safetensors"
    weights = load_file(path)
    lost = dict(weights)
    lost.pop("model.layers.1.mlp.up_proj.weight")
    save_file(lost, path)
    with pytest.raises(InvalidModel, match=r"1 tensors are missing.*layers\.1\.mlp\.up_proj"):
        load_model(model_dir, dtype=torch.float32)
    save_file({**weights, "model.norm.weight": torch.zeros(7)}, path)
    with pytest.raises(InvalidModel, match="cannot be loaded"):
        load_model(model_dir, dtype=torch.float32)


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"model_type": "unheard"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_broken_configurations_are_refused(model_dir: Path, config: str) -> None:
    (model_dir / "config.json").write_text(config)
    with pytest.raises(InvalidModel, match=r"config\.json cannot be used"):
        load_config(model_dir)
