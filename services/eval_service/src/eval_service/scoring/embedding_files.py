"""The files of a sentence-embedding model: what they must be, and how its tokens become one vector."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from modelkit.errors import InvalidModel, Problem
from modelkit.inspection import INDEX, SINGLE, read_json
from modelkit.safetensors_header import read_header
from modelkit.tensor_files import shards_of

if TYPE_CHECKING:
    import torch

POOLINGS = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
UNDERSTOOD = ("Transformer", "Pooling", "Normalize")
POOLING = "1_Pooling/config.json"
NEEDED = ("config.json", "tokenizer.json", "modules.json", POOLING)
EXPECTED = (
    "give the directory of a sentence-transformers model: config.json of a text encoder (bert, roberta, mpnet, qwen3 "
    f"and others), tokenizer.json, {SINGLE}, modules.json with Transformer and Pooling, and {POOLING}"
)
MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the vectors of tokens become one: their mean, or that of the first or last token. max_tokens are read."""

    mode: str = "mean"
    max_tokens: int = MAX_TOKENS

    def pool(self, hidden: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        """Vectors (texts, width) of hidden states (texts, tokens, width) that are padded on the right."""
        if self.mode == "first":
            return hidden[:, 0]
        if self.mode == "last":
            return hidden[range(len(hidden)), mask.sum(dim=1) - 1]
        weights = mask[..., None].to(hidden.dtype)
        pooled: torch.Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return pooled


def read_pooling(directory: Path, *, field: str = "embedding_model") -> Pooling:
    """Checks the directory of an embedding model without its weights. Raises InvalidModel with all that is wrong."""
    problems = [Problem(field, f"{directory}: {text}") for text in _problems(directory)]
    if problems:
        raise InvalidModel(problems)
    settings = read_json(directory / POOLING)
    mode = next(mode for mode, key in POOLINGS.items() if settings.get(key))
    longest = _json(directory / "sentence_bert_config.json").get("max_seq_length")
    known = read_json(directory / "config.json").get("max_position_embeddings")
    limits = [limit for limit in (longest or MAX_TOKENS, known) if isinstance(limit, int) and limit > 0]
    return Pooling(mode, min(limits))


def _problems(directory: Path) -> Iterator[str]:
    missing = [name for name in NEEDED if not (directory / name).is_file()]
    if not any((directory / name).is_file() for name in (SINGLE, INDEX)):
        missing.append(SINGLE)
    if missing:
        yield f"it has no {', no '.join(missing)}; {EXPECTED}"
        return
    try:
        config = read_json(directory / "config.json")
        kinds = _modules(directory / "modules.json")
        settings = read_json(directory / POOLING)
        for shard in shards_of(directory):
            read_header(directory / shard)
    except (OSError, ValueError) as error:
        yield f"its files cannot be read: {error}"
        return
    if not _turns_text_into_vectors(config):
        yield f"its config.json is of the family {config.get('model_type')!r}, which is no text encoder; {EXPECTED}"
    if strange := [kind for kind in kinds if kind not in UNDERSTOOD]:
        yield f"it has a module {strange[0]!r}; only {', '.join(UNDERSTOOD)} are understood"
    elif lacking := [kind for kind in UNDERSTOOD[:2] if kind not in kinds]:
        yield f"its modules.json has no {lacking[0]}; {EXPECTED}"
    wanted = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if strange := [key for key in wanted if key not in POOLINGS.values()]:
        yield f"it asks for {strange[0]}; only {', '.join(POOLINGS.values())} are understood"
    elif not wanted:
        yield f"its {POOLING} asks for none of {', '.join(POOLINGS.values())}"


def _turns_text_into_vectors(config: Mapping[str, Any]) -> bool:
    """Whether transformers reads text with models of this family and makes a vector of each token."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    family = str(config.get("model_type"))
    reads_text = family in MODEL_FOR_MASKED_LM_MAPPING_NAMES or family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return reads_text and isinstance(MODEL_MAPPING_NAMES.get(family), str) and not config.get("is_encoder_decoder")


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _modules(path: Path) -> list[str]:
    """Classes of a model's parts. Raises ValueError, OSError."""
    listed = orjson.loads(path.read_bytes())
    if not isinstance(listed, list):
        raise ValueError(f"{path.name} is no list of modules")
    return [str(module.get("type", "")).rpartition(".")[2] for module in listed if isinstance(module, dict)]
