"""What lies in a model directory: every reason why it cannot be trained, and what it is when it can."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from modelkit import chatglm
from modelkit.architectures import causal_language_models
from modelkit.safetensors_header import HeaderError, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
MAX_JSON_BYTES = 64 << 20
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Keys that make a loader run or fetch code; they are passed over wherever they stand in a configuration.
UNSAFE_KEYS = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "custom_generate",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "_attn_implementation",
        "attn_implementation",
        "experts_implementation",
        "transformers_weights",
        "kernel_config",
        "distributed_config",
    }
)
_ADAPTER = "{} holds an adapter; give its base model, or merge the two first"


@dataclass(slots=True)
class Inspection:
    """A model directory. It can be trained when there are no problems; reason names the first kind of problem.

    layers are the names of its matrices, without the path to them: "q_proj", "lm_head". A model that needs conversion
    is described as it will be then.
    """

    problems: list[str] = field(default_factory=list)
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    architecture: str = ""
    identity: list[bytes] = field(default_factory=list)
    parameters: int = 0
    weight_bytes: int = 0
    dtype: str = "float32"
    layers: set[str] = field(default_factory=set)
    needs_conversion: bool = False

    def refuse(self, reason: str, problem: str) -> None:
        """Notes a problem."""
        self.reason = self.reason or reason
        self.problems.append(problem)


def inspect(
    directory: Path, is_allowed: Callable[[Path], bool] | None = None, *, own_tokenizer: bool = True
) -> Inspection:
    """Looks at a model directory without loading anything from it.

    is_allowed judges where its links lead. Without own_tokenizer another one is used, and only a conversion needs it.
    """
    found = Inspection()
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names are what is needed
    except OSError as error:
        found.refuse("MODEL_NOT_FOUND", f"{directory} cannot be read: {error.strerror}")
        return found
    for name in names:
        if is_allowed and (directory / name).is_symlink() and not is_allowed(directory / name):
            found.refuse("PATH_NOT_ALLOWED", f"{name} leads out of the allowed directories")
    if found.problems or _is_no_model(directory, names, found):
        return found
    _inspect_config(directory, names, found)
    _inspect_weights(directory, names, found)
    if found.needs_conversion:
        found.layers = set(chatglm.converted_layers())
    if (own_tokenizer or found.needs_conversion) and not any(name in names for name in TOKENIZERS):
        message = f"{directory} has no tokenizer (tokenizer.json or tokenizer.model); add one, or name a tokenizer_path"
        found.refuse("TOKENIZER_MISSING", message)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError with what is wrong, or OSError."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_JSON_BYTES >> 20} MiB")
    try:
        value = orjson.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def without_unsafe(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A configuration without the keys that make a loader run or fetch code, at any depth, and their names."""
    removed: list[str] = []

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            removed.extend(key for key in value if key in UNSAFE_KEYS)
            return {key: clean(item) for key, item in value.items() if key not in UNSAFE_KEYS}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return clean(config), sorted(set(removed))


def _is_no_model(directory: Path, names: list[str], found: Inspection) -> bool:
    """Refuses a directory that is whole, but holds no model; what it lacks to be one is no use to tell."""
    if "config.json" in names:
        return False
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if "adapter_config.json" in names:
        found.refuse("MODEL_IS_ADAPTER", _ADAPTER.format(directory))
    elif ggufs:
        found.refuse("MODEL_IS_GGUF", gguf_message(ggufs[0]))
    return bool(found.problems)


def _inspect_config(directory: Path, names: list[str], found: Inspection) -> None:
    if "adapter_config.json" in names:
        found.refuse("MODEL_IS_ADAPTER", _ADAPTER.format(directory))
    if "config.json" not in names:
        found.refuse("CONFIG_MISSING", f"{directory} has no config.json")
        return
    path = directory / "config.json"
    try:
        raw = read_json(path)
        found.identity.append(path.read_bytes())
    except (ValueError, OSError) as error:
        found.refuse("CONFIG_INVALID", str(error))
        return
    found.config, removed = without_unsafe(raw)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or not kind:
        found.refuse("CONFIG_INVALID", "config.json names no model_type")
        return
    if kind == chatglm.MODEL_TYPE:
        _inspect_chatglm(directory, found)
        return
    known = causal_language_models()
    if kind not in known:
        own_code = " and asks for code of its own, which is never run" if "auto_map" in removed else ""
        advice = "use a model in the native form of transformers, for example a conversion with -hf in its name"
        found.refuse(
            "UNKNOWN_ARCHITECTURE", f"model_type {kind!r} is not a causal language model known here{own_code}; {advice}"
        )
        return
    found.architecture = known[kind]
    if removed:
        found.notes.append(f"config.json: {', '.join(removed)} passed over; code from models is never run")
    if isinstance(quantization := raw.get("quantization_config"), dict):
        method = quantization.get("quant_method", "unknown")
        found.refuse("MODEL_IS_QUANTIZED", f"the weights are quantized ({method}); use the unquantized model")


def _inspect_chatglm(directory: Path, found: Inspection) -> None:
    """A checkpoint that asks for code of its own, and is converted to an architecture that needs none."""
    if problems := list(chatglm.problems(found.config, directory)):
        for problem in problems:
            found.refuse("UNKNOWN_ARCHITECTURE", problem)
        return
    found.config = chatglm.equivalent_config(found.config, directory)
    found.architecture = found.config["architectures"][0]
    found.needs_conversion = True
    found.notes.append(
        "converted from ChatGLM's original layout to the architecture glm; code from models is never run"
    )


def _inspect_weights(directory: Path, names: list[str], found: Inspection) -> None:
    files = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if not files:
        _no_safetensors(directory, names, found)
        return
    shards, index = _shards(directory, names, files, found)
    stored: Counter[str] = Counter()
    tensors_by_shard: dict[str, set[str]] = {}
    for shard in shards:
        path = directory / shard
        try:
            raw, tensors = read_header(path)
        except (HeaderError, OSError) as error:
            found.refuse("WEIGHTS_BROKEN", f"{shard}: {error}; copy the file again")
            continue
        tensors_by_shard[shard] = set(tensors)
        found.identity.append(shard.encode() + b"\0" + raw)
        found.weight_bytes += path.stat().st_size - 8 - len(raw)
        for name, tensor in tensors.items():
            stored[tensor.dtype] += tensor.elements
            if len(tensor.shape) == 2 and name.endswith(".weight"):
                found.layers.add(name.split(".")[-2])
    found.parameters = sum(stored.values())
    if stored:
        found.dtype = DTYPES.get(stored.most_common(1)[0][0], "float32")
    absent = [
        name for name, shard in index.items() if shard in tensors_by_shard and name not in tensors_by_shard[shard]
    ]
    if absent:
        found.refuse(
            "WEIGHTS_BROKEN", f"{INDEX} lists {len(absent)} tensors that are not in their file, first {absent[0]!r}"
        )


def _shards(directory: Path, names: list[str], files: list[str], found: Inspection) -> tuple[list[str], dict[str, str]]:
    """Files that hold the weights, and for sharded weights the file of each tensor."""
    if INDEX not in names:
        if SINGLE in names:
            return [SINGLE], {}
        found.refuse("WEIGHTS_MISSING", f"{directory} has {files[0]} but neither {SINGLE} nor {INDEX}")
        return [], {}
    try:
        index = read_json(directory / INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ValueError(f"{INDEX} has no weight_map")
        shards = sorted({str(shard) for shard in index.values()})
        if unsafe := [shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")]:
            raise ValueError(f"{INDEX} names {unsafe[0]!r}, which is not a safetensors file beside it")
    except (ValueError, OSError) as error:
        found.refuse("WEIGHTS_BROKEN", str(error))
        return [], {}
    found.identity.append((directory / INDEX).read_bytes())
    if missing := [shard for shard in shards if shard not in names]:
        listed = ", ".join(missing[:5])
        found.refuse("WEIGHTS_MISSING", f"{len(missing)} of {len(shards)} weight files are missing: {listed}")
    return [shard for shard in shards if shard in names], index


def _no_safetensors(directory: Path, names: list[str], found: Inspection) -> None:
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if ggufs:
        found.refuse("MODEL_IS_GGUF", gguf_message(ggufs[0]))
    if pickles:
        message = (
            f"{directory} has its weights as pickles only ({', '.join(pickles[:3])}); pickles can run code and are "
            "never loaded. Use the safetensors form of the model"
        )
        found.refuse("MODEL_IS_PICKLE", message)
    if not ggufs and not pickles:
        found.refuse("WEIGHTS_MISSING", f"{directory} has no weights (*.safetensors)")


def gguf_message(name: str) -> str:
    """Why a GGUF file is no base model, and what to use instead."""
    return (
        f"{name} is a GGUF file: quantized for inference, it cannot be trained. Use the model it was made from, a "
        "directory with config.json and *.safetensors; the result can be packaged as GGUF again"
    )
