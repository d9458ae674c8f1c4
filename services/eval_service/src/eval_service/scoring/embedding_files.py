"""The files of a sentence-embedding model: what they must be, and how its tokens become one vector."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from modelkit.errors import InvalidModel, Problem
from modelkit.inspection import INDEX, SINGLE, read_json

if TYPE_CHECKING:
    import torch

POOLINGS = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
UNDERSTOOD = ("Transformer", "Pooling", "Normalize")
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
    settings = _json(directory / "1_Pooling" / "config.json")
    mode = next((mode for mode, key in POOLINGS.items() if settings.get(key)), "mean")
    longest = _json(directory / "sentence_bert_config.json").get("max_seq_length")
    known = read_json(directory / "config.json").get("max_position_embeddings")
    limits = [limit for limit in (longest or MAX_TOKENS, known) if isinstance(limit, int) and limit > 0]
    return Pooling(mode, min(limits))


def _problems(directory: Path) -> Iterator[str]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    missing = [name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()]
    if not any((directory / name).is_file() for name in (SINGLE, INDEX)):
        missing.append(SINGLE)
    if missing:
        yield f"it has no {', no '.join(missing)}; give the directory of a sentence-transformers model in safetensors"
        return
    try:
        family = read_json(directory / "config.json").get("model_type")
        kinds = _modules(directory / "modules.json")
        settings = _json(directory / "1_Pooling" / "config.json")
    except (OSError, ValueError) as error:
        yield f"its configuration cannot be read: {error}"
        return
    if family not in MODEL_MAPPING_NAMES:
        yield f"models of the family {family!r} are not known"
    if strange := [kind for kind in kinds if kind not in UNDERSTOOD]:
        yield f"it has a module {strange[0]!r}; only {', '.join(UNDERSTOOD)} are understood"
    wanted = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if strange := [key for key in wanted if key not in POOLINGS.values()]:
        yield f"it asks for {strange[0]}; only {', '.join(POOLINGS.values())} are understood"


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _modules(path: Path) -> list[str]:
    """Classes of a model's parts. Raises ValueError, OSError."""
    if not path.is_file():
        return []
    listed = orjson.loads(path.read_bytes())
    return [str(module.get("type", "")).rpartition(".")[2] for module in listed if isinstance(module, dict)]
