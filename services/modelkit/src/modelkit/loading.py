"""Loads models and tokenizers from safetensors and JSON alone; code and pickles that lie beside them are never used."""

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from modelkit import chatglm
from modelkit.architectures import causal_language_models, sequence_classifiers
from modelkit.errors import InvalidModel, Problem
from modelkit.inspection import INDEX, SINGLE, read_json, without_unsafe

# Names of older config.json files that a configuration class reads without declaring them.
OLDER_KEYS = frozenset(
    {"model_type", "torch_dtype", "num_labels", "rope_theta", "rope_scaling", "partial_rotary_factor", "rope_ratio"}
)

# The name that transformers' text classifiers give their output layer.
CLASSIFIER_HEAD = "score"


def quieten() -> None:
    """Switches progress bars off, and reports of what load_model checks itself; they fill logs."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_config(directory: Path) -> PreTrainedConfig:
    """The configuration in config.json, only what its class declares. Raises InvalidModel.

    Of a model that needs conversion it is the one that it will have.
    """
    try:
        raw, _ = without_unsafe(read_json(directory / "config.json"))
        if raw.get("model_type") == chatglm.MODEL_TYPE:
            raw = chatglm.equivalent_config(raw, directory)
        kind: Any = CONFIG_MAPPING[raw["model_type"]]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidModel(Problem("base_model", f"{directory}: config.json cannot be used: {error}")) from error
    declared = {field.name for field in fields(kind)} | set(kind.attribute_map) | OLDER_KEYS
    try:
        config: PreTrainedConfig = kind.from_dict({key: value for key, value in raw.items() if key in declared})
    except Exception as error:
        raise InvalidModel(Problem("base_model", f"{directory}: config.json cannot be used: {error}")) from error
    return config


def load_tokenizer(directory: Path, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory. Raises InvalidModel when it needs code of its own or cannot be read.

    Of a model that needs conversion it is the one that it will have.
    """
    if chatglm.is_original(directory):
        with tempfile.TemporaryDirectory(prefix="tunesmith-tokenizer-") as folder:
            chatglm.convert_outline(directory, Path(folder))
            return load_tokenizer(Path(folder), config)
    load: Any = AutoTokenizer.from_pretrained
    try:
        tokenizer: PreTrainedTokenizerBase = load(
            str(directory),
            config=config or load_config(directory),
            trust_remote_code=False,
            local_files_only=True,
        )
    except InvalidModel:
        raise
    except Exception as error:
        raise InvalidModel(Problem("base_model", f"{directory}: the tokenizer cannot be loaded: {error}")) from error
    if not tokenizer.is_fast:
        raise InvalidModel(Problem("base_model", f"{directory} has no tokenizer.json; convert its tokenizer first"))
    return tokenizer


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    config: PreTrainedConfig | None = None,
    device: torch.device | None = None,
    attention: str = "sdpa",
    labels: Sequence[str] | None = None,
    quantization: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """The language model of a directory with its weights in dtype, on the CPU unless a device is given.

    With labels it is the family's text classifier, whose head is new when the directory has none; it reads the last
    token that is not padding. With quantization the weights of linear layers are quantized one after the other while
    they are read, so that the whole model is never in memory unquantized.

    The weights are read here and handed over, so that nothing else in the directory can take part. Raises InvalidModel
    when they do not fit the configuration, or the family has no classifier.
    """
    config = config or load_config(directory)
    if getattr(config, "attn_logit_softcapping", None):
        attention = "eager"  # PyTorch's own attention cannot cap logits
    kind = _model_class(config, directory, classifies=labels is not None)
    if labels is not None:
        _set_labels(config, labels)
    options = {"config": config, "dtype": dtype, "attn_implementation": attention, **_placement(device, quantization)}
    model, missing = _from_weights(kind, directory, options)
    new_head = f"{CLASSIFIER_HEAD}." if labels is not None else None
    missing = sorted(name for name in missing if not new_head or not name.startswith(new_head))
    if missing:
        message = f"{directory}: {len(missing)} tensors are missing from the weights, first {missing[0]!r}"
        raise InvalidModel(Problem("base_model", message))
    if (directory / "generation_config.json").is_file():
        settings, _ = without_unsafe(read_json(directory / "generation_config.json"))
        model.generation_config = GenerationConfig.from_dict(settings)
    return model


def _placement(device: torch.device | None, quantization: QuantizationConfigMixin | None) -> dict[str, Any]:
    """Where weights go as they are read, and in which form."""
    if quantization is not None:
        return {"quantization_config": quantization, "device_map": {"": device or torch.device("cpu")}}
    return {"device_map": {"": device}} if device is not None and device.type != "cpu" else {}


def _from_weights(kind: Any, directory: Path, options: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    """A model of a class with the weights of a directory, and which are missing. Raises InvalidModel."""
    try:
        model, report = kind.from_pretrained(
            None,
            state_dict=load_weights(directory),
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InvalidModel(Problem("base_model", f"{directory}: the weights cannot be loaded: {error}")) from error
    return model, list(report["missing_keys"])


def _model_class(config: PreTrainedConfig, directory: Path, *, classifies: bool) -> Any:
    if not classifies:
        return getattr(transformers, causal_language_models()[config.model_type])
    known = sequence_classifiers()
    if config.model_type not in known:
        message = f"{directory}: transformers has no text classifier for the family {config.model_type!r}"
        raise InvalidModel(Problem("base_model", message))
    return getattr(transformers, known[config.model_type])


def _set_labels(config: PreTrainedConfig, labels: Sequence[str]) -> None:
    """Names the classes, and the token that a classifier passes over at the end of a sequence."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    if getattr(config, "pad_token_id", None) is None:
        end = getattr(config, "eos_token_id", None)
        config.pad_token_id = (end[0] if isinstance(end, list) else end) or 0


def load_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of model.safetensors or its shards, mapped from disk."""
    if not (directory / INDEX).is_file():
        return load_file(directory / SINGLE)
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(set(read_json(directory / INDEX)["weight_map"].values())):
        if Path(shard).name != shard:
            raise InvalidModel(Problem("base_model", f"{INDEX} names {shard!r}, which is not a file beside it"))
        weights |= load_file(directory / shard)
    return weights
