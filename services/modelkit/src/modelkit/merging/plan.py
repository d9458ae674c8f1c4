"""Which tensors a merged model consists of and how each comes to be; nothing is read before it is asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from modelkit.adapters import Adapter, Factors, Product
from modelkit.architectures import sequence_classifiers
from modelkit.errors import InvalidAdapter, InvalidModel, Problem
from modelkit.inspection import read_json, without_unsafe
from modelkit.number_formats import Floats
from modelkit.safetensors_header import ITEM_BITS
from modelkit.tensor_files import ModelTensors, StoredTensor

SUMMED = ("F32", "F16", "BF16")
OUTPUTS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
OUTER_NAMES = ("model.", "transformer.", "gpt_neox.")


@dataclass(frozen=True, slots=True)
class MergedTensor:
    """A tensor of the merged model: what is stored, in the base model or in the adapter, plus a product.

    dtype names the type that it is written in, as safetensors does.
    """

    name: str
    stored: StoredTensor
    dtype: str
    product: Product | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape."""
        return self.stored.info.shape

    @property
    def size(self) -> int:
        """Bytes when written."""
        return self.stored.info.elements * ITEM_BITS[self.dtype] // 8

    @property
    def is_unchanged(self) -> bool:
        """Whether the stored bytes are those to write."""
        return self.product is None and self.stored.info.dtype == self.dtype

    def factors(self) -> Factors | None:
        """The matrices of the product, to be passed to rows. Raises OSError."""
        return self.product.read(self.shape) if self.product else None

    def rows(self, first: int, last: int, factors: Factors | None = None) -> Floats:
        """Some rows in float32, summed in float64; factors are those of this tensor. Raises OSError."""
        found = self.stored.values(first, last)
        if factors is None:
            return found
        total = factors.rows(first, last)
        total += found
        return total.astype(np.float32)

    def read(self) -> Floats:
        """The whole tensor in float32. Raises OSError."""
        rows = self.shape[0] if self.shape else 1
        return self.rows(0, rows, self.factors())


class MergePlan:
    """The merged model of a directory with a base model and an adapter; without an adapter the base model itself.

    Raises InvalidModel for a base model that cannot be read, and InvalidAdapter listing all that does not fit.
    config is that of the merged model, without what makes a loader run code.
    """

    def __init__(self, base: Path, adapter: Adapter | None = None) -> None:
        self.directory = base
        self.adapter = adapter
        try:
            self.config, _ = without_unsafe(read_json(base / "config.json"))
        except (OSError, ValueError) as error:
            raise InvalidModel(Problem("base_model", f"{base}: {error}")) from error
        self._base = ModelTensors(base)
        try:
            self.shards = self._plan(adapter)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "MergePlan":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the base model's files."""
        self._base.close()

    @property
    def is_indexed(self) -> bool:
        """Whether the weights are spread over files that an index names."""
        return self._base.indexed

    @property
    def tensors(self) -> dict[str, MergedTensor]:
        """Every tensor by name."""
        return {tensor.name: tensor for shard in self.shards.values() for tensor in shard}

    @property
    def size(self) -> int:
        """Bytes of all tensors when written."""
        return sum(tensor.size for tensor in self.tensors.values())

    def _plan(self, adapter: Adapter | None) -> dict[str, list[MergedTensor]]:
        """The tensors of each file, in the order in which they are written."""
        planned = {name: MergedTensor(name, stored, stored.info.dtype) for name, stored in self._base.items()}
        if adapter:
            if problems := list(self._apply(adapter, planned)):
                raise InvalidAdapter([Problem("", problem) for problem in problems])
            self.config |= _classifier_config(self.config, adapter)
        shards: dict[str, list[MergedTensor]] = {shard: [] for shard in self._base.files}
        last = list(shards)[-1]
        for name, tensor in planned.items():
            shards[self._base[name].file.path.name if name in self._base else last].append(tensor)
        return {
            shard: sorted(tensors, key=lambda tensor: -ITEM_BITS[tensor.dtype]) for shard, tensors in shards.items()
        }

    def _apply(self, adapter: Adapter, planned: dict[str, MergedTensor]) -> Iterator[str]:
        if adapter.head is None:
            yield from self._untie(adapter, planned)
        else:
            for name in OUTPUTS:
                planned.pop(name, None)
        for name, stored in adapter.replacements.items():
            yield from _replace(planned, _known(name, planned), stored)
        for name, product in adapter.products.items():
            yield from _add(planned, _known(name, planned), product)

    def _untie(self, adapter: Adapter, planned: dict[str, MergedTensor]) -> Iterator[str]:
        """An output layer that shares its weights with the embeddings becomes one of its own once either changes."""
        embeddings = next((name for name in planned if name.endswith(EMBEDDINGS)), None)
        named = [name for name in OUTPUTS if name in self._base or name in adapter.names]
        output = named[0] if named else OUTPUTS[0]
        tied = output not in self._base or self.config.get("tie_word_embeddings") is True
        changed = {_known(name, planned) for name in adapter.names}
        if embeddings is None or not tied or not changed & {embeddings, output}:
            return
        if adapter.config.ensures_tying:
            yield "adapters that are tied between embeddings and output layer (ensure_weight_tying) are not supported"
            return
        planned[output] = replace(planned[embeddings], name=output)
        self.config["tie_word_embeddings"] = False


def _known(name: str, planned: Mapping[str, Any]) -> str:
    """The name that the base model's files have for a tensor; some leave the outermost part of it out, or have it."""
    candidates = (name, *(name.removeprefix(outer) for outer in OUTER_NAMES), *(outer + name for outer in OUTER_NAMES))
    return next((candidate for candidate in candidates if candidate in planned), name)


def _replace(planned: dict[str, MergedTensor], name: str, stored: StoredTensor) -> Iterator[str]:
    before = planned.get(name)
    if before is None:
        planned[name] = MergedTensor(name, stored, stored.info.dtype)
    elif before.shape != stored.info.shape:
        yield f"{name} is {before.shape} in the base model and {stored.info.shape} in the adapter"
    elif before.dtype not in SUMMED:
        yield f"{name} is stored as {before.dtype} in the base model; one of {', '.join(SUMMED)} is expected"
    else:
        planned[name] = replace(before, stored=stored)


def _add(planned: dict[str, MergedTensor], name: str, product: Product) -> Iterator[str]:
    before = planned.get(name)
    if before is None:
        yield f"the files of the base model have no {name}, which the adapter changes"
    elif not product.fits(before.shape):
        inner, outer = product.inner.info.shape, product.outer.info.shape
        yield f"{name} is {before.shape} in the base model; the adapter's matrices {inner} and {outer} do not fit"
    elif before.dtype not in SUMMED:
        yield f"{name} is stored as {before.dtype} in the base model; one of {', '.join(SUMMED)} is expected"
    else:
        planned[name] = replace(before, product=product)


def _classifier_config(config: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """What a classifier's configuration has beside that of its base model; see modelkit.loading."""
    if adapter.head is None:
        return {}
    kind = str(config.get("model_type"))
    if kind not in (known := sequence_classifiers()):
        raise InvalidAdapter(Problem("", f"transformers has no text classifier for the family {kind!r}"))
    end = config.get("eos_token_id")
    padding = config.get("pad_token_id")
    return {
        "architectures": [known[kind]],
        "id2label": {str(number): label for number, label in enumerate(adapter.labels)},
        "label2id": {label: number for number, label in enumerate(adapter.labels)},
        "problem_type": "single_label_classification",
        "pad_token_id": padding if padding is not None else (end[0] if isinstance(end, list) else end) or 0,
    }
