"""Base models are found, checked unloaded, and refused with every reason at once (F10, F21, faults 40, 41, 48)."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelkit import scratch
from modelkit.base_models import BaseModels
from modelkit.catalogue import CATALOGUE
from modelkit.errors import InvalidModel, PathNotAllowed
from modelkit.paths import AllowedRoots


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "model"
    text = Path(json.__file__).read_text()
    scratch.build(folder, hidden_size=32, layers=1, vocab_size=300, corpus=[text])
    return folder


@pytest.fixture
def root(tmp_path: Path, pristine: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "root" / "model")
    return tmp_path / "root"


@pytest.fixture
def models(root: Path, tmp_path: Path) -> BaseModels:
    return BaseModels(AllowedRoots([root]), hub_cache=tmp_path / "hub")


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def split_weights(directory: Path, *, missing: bool = False) -> None:
    """Turns model.safetensors into one shard with an index."""
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    weights = {"a.weight": "model-00002-of-00002.safetensors"} if missing else {}
    weights["model.norm.weight"] = "model-00001-of-00002.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def test_a_directory_beneath_a_root(models: BaseModels, root: Path) -> None:
    resolved = models.resolve(str(root / "model"))
    assert resolved.directory == root / "model"
    assert (resolved.family, resolved.architecture, resolved.dtype) == ("llama", "LlamaForCausalLM", "float32")
    assert resolved.parameters * 4 == resolved.weight_bytes
    assert len(resolved.sha256) == 64
    assert resolved.notes == ()


@pytest.mark.parametrize("name", ["THUDM/chatglm3-6b", "llama-2-7b", "meta-llama/Llama-2-7b-hf", "own/name"])
def test_ids_are_looked_up_beneath_the_roots(models: BaseModels, root: Path, name: str) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    shutil.copytree(root / "model", root / name)
    assert models.resolve(name).directory == root / name


def test_catalogue_names_stand_for_hub_ids(models: BaseModels, root: Path) -> None:
    shutil.copytree(root / "model", root / "meta-llama" / "Llama-2-7b-hf")
    assert models.resolve("llama-2-7b").directory == root / "meta-llama" / "Llama-2-7b-hf"


def test_the_hub_cache_is_used_offline(models: BaseModels, root: Path, tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--Qwen--Qwen2-7B"
    blobs = cached / "blobs"
    shutil.copytree(root / "model", blobs)
    snapshot = cached / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert models.resolve("Qwen/Qwen2-7B").directory == snapshot


def test_what_is_not_here_says_where_to_put_it(models: BaseModels, root: Path) -> None:
    with pytest.raises(InvalidModel, match=f"not on this machine.*{root}/THUDM/chatglm3-6b") as caught:
        models.resolve("THUDM/chatglm3-6b", field="finetune.base_model")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert caught.value.problems[0].field == "finetune.base_model"


@pytest.mark.parametrize("name", ["/etc", "../outside", "{root}/../outside", "{root}/link", "link", "models--x/../.."])
def test_nothing_outside_the_roots(models: BaseModels, root: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(root / "model", tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    with pytest.raises((PathNotAllowed, InvalidModel)):
        models.resolve(name.format(root=root))


def test_files_that_lead_out_of_the_roots_are_refused(models: BaseModels, root: Path, tmp_path: Path) -> None:
    (root / "model" / "config.json").rename(tmp_path / "config.json")
    (root / "model" / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(InvalidModel, match=r"config\.json leads out"):
        models.resolve("model")


@pytest.mark.parametrize(
    ("files", "reason"),
    [(("adapter_config.json", "adapter_model.safetensors"), "MODEL_IS_ADAPTER"), (("m-Q4_0.gguf",), "MODEL_IS_GGUF")],
)
def test_what_is_no_model_at_all_is_one_problem(
    models: BaseModels, root: Path, files: tuple[str, ...], reason: str
) -> None:
    """M28: not one for each file that a model would have."""
    (root / "other").mkdir()
    for name in files:
        (root / "other" / name).write_text("{}")
    with pytest.raises(InvalidModel) as caught:
        models.resolve("other")
    assert (caught.value.reason, len(caught.value.problems)) == (reason, 1)


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "CONFIG_MISSING", "no config.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "CONFIG_INVALID", "not valid JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "CONFIG_INVALID", "not a JSON object"),
    "no model_type": (lambda d: edit_config(d, model_type=...), "CONFIG_INVALID", "names no model_type"),
    "own code": (
        lambda d: edit_config(d, model_type="baichuan", auto_map={"AutoModel": "m.Model"}),
        "UNKNOWN_ARCHITECTURE",
        "code of its own, which is never run",
    ),
    "quantized": (
        lambda d: edit_config(d, quantization_config={"quant_method": "gptq"}),
        "MODEL_IS_QUANTIZED",
        "gptq",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "TOKENIZER_MISSING", "no tokenizer"),
    "adapter": (lambda d: (d / "adapter_config.json").write_text("{}"), "MODEL_IS_ADAPTER", "base model"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "WEIGHTS_MISSING", "no weights"),
    "pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "MODEL_IS_PICKLE",
        "never loaded. Use the safetensors form",
    ),
    "gguf": (
        lambda d: (d / "model.safetensors").rename(d / "model-Q4_K_M.gguf"),
        "MODEL_IS_GGUF",
        "cannot be trained. Use the model it was made from",
    ),
    "truncated": (lambda d: cut(d / "model.safetensors", -100), "WEIGHTS_BROKEN", "the file should have"),
    "cut in the header": (lambda d: cut(d / "model.safetensors", 100), "WEIGHTS_BROKEN", "header claims"),
    "empty weights": (lambda d: cut(d / "model.safetensors", 0), "WEIGHTS_BROKEN", "too few"),
    "huge header": (
        lambda d: (d / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}"),
        "WEIGHTS_BROKEN",
        "header claims",
    ),
    "header of noise": (
        lambda d: (d / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"abcd"),
        "WEIGHTS_BROKEN",
        "not JSON",
    ),
    "overlap": (
        lambda d: write_header(d, {"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [0, 4])}, 4),
        "WEIGHTS_BROKEN",
        "overlap",
    ),
    "shape lies": (
        lambda d: write_header(d, {"a": ("F32", [2, 2], [0, 4])}, 4),
        "WEIGHTS_BROKEN",
        "its shape needs 16",
    ),
    "negative shape": (lambda d: write_header(d, {"a": ("F32", [-1, -1], [0, 4])}, 4), "WEIGHTS_BROKEN", "malformed"),
    "lost shard": (lambda d: split_weights(d, missing=True), "WEIGHTS_MISSING", "1 of 2 weight files are missing"),
    "shard elsewhere": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        "WEIGHTS_BROKEN",
        "not a safetensors file beside it",
    ),
}


def cut(path: Path, size: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:size])


def write_header(directory: Path, tensors: dict[str, Any], size: int) -> None:
    header = {
        name: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True)) for name, entry in tensors.items()
    }
    raw = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))


@pytest.mark.parametrize("name", DAMAGES)
def test_every_defect_has_its_own_message(models: BaseModels, root: Path, name: str) -> None:
    damage, reason, words = DAMAGES[name]
    damage(root / "model")
    with pytest.raises(InvalidModel) as caught:
        models.resolve("model")
    assert caught.value.reason == reason
    assert words in str(caught.value)


def test_all_defects_are_listed_at_once(models: BaseModels, root: Path) -> None:
    for name in ("no config", "truncated", "no tokenizer"):
        DAMAGES[name][0](root / "model")
    with pytest.raises(InvalidModel) as caught:
        models.resolve("model")
    assert len(caught.value.problems) == 3


def test_a_model_without_a_tokenizer_will_do_when_another_is_used(models: BaseModels, root: Path) -> None:
    """M28."""
    whole = models.resolve("model")
    (root / "model" / "tokenizer.json").unlink()
    assert models.resolve("model", own_tokenizer=False) == whole
    with pytest.raises(InvalidModel, match="or name a tokenizer_path"):
        models.resolve("model")


def test_a_gguf_file_itself_is_explained(models: BaseModels, root: Path) -> None:
    (root / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidModel, match="GGUF file: quantized for inference"):
        models.resolve(str(root / "model.gguf"))


def test_dangerous_keys_are_passed_over_and_told(models: BaseModels, root: Path) -> None:
    danger = {
        "auto_map": {"AutoConfig": "evil.Config"},
        "_attn_implementation_internal": "evil/kernel",
        "trust_remote_code": True,
    }
    edit_config(root / "model", **danger)
    resolved = models.resolve("model")
    assert not danger.keys() & resolved.config.keys()
    assert all(key in resolved.notes[0] for key in danger)


def test_shards_are_read_through_their_index(models: BaseModels, root: Path) -> None:
    whole = models.resolve("model")
    split_weights(root / "model")
    sharded = models.resolve("model")
    assert sharded.parameters == whole.parameters
    assert sharded.sha256 != whole.sha256


def test_the_catalogue_offers_the_documented_models_and_what_is_here(models: BaseModels, root: Path) -> None:
    shutil.copytree(root / "model", root / "THUDM" / "chatglm3-6b")
    offered = {model.entry.id: model for model in models.offered()}
    documented = (
        "resnet50 efficientnet-b0 yolov8n yolov8s sd-v1-5 llama-2-7b llama-2-13b mistral-7b phi-2 qwen-7b "
        "THUDM/chatglm2-6b THUDM/chatglm3-6b Qwen/Qwen1.5-14B Qwen/Qwen2-72B meta-llama/Meta-Llama-3-70B"
    )
    assert set(documented.split()) <= set(offered)
    assert offered["THUDM/chatglm3-6b"].local
    assert offered[str(root / "model")].entry.family == "llama"
    assert not offered["phi-2"].local
    assert {model.entry.modality for model in models.offered("object_detector")} == {"object_detector"}
    assert len({entry.id for entry in CATALOGUE}) == len(CATALOGUE)


def test_what_is_offered_can_be_named_and_stands_there_once(root: Path, tmp_path: Path) -> None:
    """Copies of checkpoints in the platform's own directories are nobody's base model; roots may contain each other."""
    (root / "work").mkdir()
    shutil.copytree(root / "model", root / "work" / "copy")
    shutil.copytree(root / "model", root / "outputs" / "mine")
    models = BaseModels(AllowedRoots([root, root / "outputs"], private=[root / "work"]), hub_cache=tmp_path / "hub")
    found = [model.entry.id for model in models.offered() if model.local]
    assert found == [str(root / "model"), str(root / "outputs" / "mine")]
    for name in found:
        models.resolve(name)


def test_light_modules_import_no_training_library() -> None:
    script = (
        "import sys, modelkit.base_models, modelkit.checkpoints, modelkit.datasets, modelkit.paths\n"
        "modelkit.base_models.inspect.__module__\n"
        "import modelkit.architectures as a; assert 'llama' in a.causal_language_models()\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
