"""What a LoRA adapter does to its base model, by the names of the base model's own tensors; read as it is asked for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import orjson

from modelkit.adapters.config import AdapterConfig, read_config
from modelkit.errors import InvalidAdapter, Problem
from modelkit.number_formats import Doubles
from modelkit.safetensors_header import HeaderError, TensorInfo
from modelkit.tensor_files import StoredTensor, TensorFile

WEIGHTS = "adapter_model.safetensors"
LABELS = "labels.json"
PICKLE = "adapter_model.bin"
CLASSIFIERS = ("score", "classifier")
PREFIX = "base_model.model."
FLOATS = ("F64", "F32", "F16", "BF16")
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>A|B|embedding_A|embedding_B)(?:\.default)?(?:\.weight)?")
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)(?:\.default)?(?=\.)")


@dataclass(frozen=True, slots=True)
class Factors:
    """Two matrices in float64 whose product is added to a tensor: left (rows, rank), right (rank, columns).

    right has been multiplied by the adapter's scale. In float32 a sum that nearly cancels out would be off by more than
    its last digit.
    """

    left: Doubles
    right: Doubles

    def rows(self, first: int, last: int) -> Doubles:
        """Some rows of the product."""
        product: Doubles = self.left[first:last] @ self.right
        return product


@dataclass(frozen=True, slots=True)
class Product:
    """The update of one tensor, not yet read. inner and outer are its matrices "A" and "B".

    On a linear layer A is (rank, in) and B (out, rank); on an embedding A is (rank, tokens) and B (width, rank).
    """

    inner: StoredTensor
    outer: StoredTensor
    scale: float
    embedding: bool
    fan_in_fan_out: bool

    @property
    def rank(self) -> int:
        """Number of the product's terms."""
        return self.inner.info.shape[0]

    def is_transposed(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape holds its input features as rows. The configuration decides about squares."""
        inputs, outputs = self.inner.info.shape[1], self.outer.info.shape[0]
        if inputs != outputs:
            return shape == (inputs, outputs)
        return self.embedding or self.fan_in_fan_out

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the product can be added to a tensor of this shape."""
        inputs, outputs = self.inner.info.shape[1], self.outer.info.shape[0]
        return shape == (inputs, outputs) or (not self.embedding and shape == (outputs, inputs))

    def read(self, shape: tuple[int, ...]) -> Factors:
        """The matrices, turned as a tensor of this shape needs them. Raises OSError."""
        inner, outer = (matrix.values().astype(np.float64) for matrix in (self.inner, self.outer))
        left, right = (inner.T, outer.T) if self.is_transposed(shape) else (outer, inner)
        return Factors(np.ascontiguousarray(left), np.ascontiguousarray(right * self.scale))


class Adapter:
    """An open directory with a LoRA adapter in PEFT form. Raises InvalidAdapter listing all that is wrong with it.

    products are updates by the name of the base model's tensor that they are added to; replacements are tensors that
    take the place of the base model's, or that it does not have (a classifier's head). labels are a classifier's
    classes in the order of their numbers; empty for any other adapter.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config: AdapterConfig = read_config(directory)
        self.products: dict[str, Product] = {}
        self.replacements: dict[str, StoredTensor] = {}
        self._file = _open(directory)
        try:
            if problems := list(self._sort()):
                raise InvalidAdapter([Problem("", f"{WEIGHTS}: {problem}") for problem in problems])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Adapter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def names(self) -> set[str]:
        """The base model's tensors that change, and those that are added."""
        return {*self.products, *self.replacements}

    @property
    def head(self) -> StoredTensor | None:
        """The output layer of a classifier, (classes, width); None for a language model's adapter."""
        return next((self.replacements[name] for name in _head_names() if name in self.replacements), None)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Classes of a classifier. Raises InvalidAdapter when labels.json does not fit its head."""
        if self.head is None:
            return ()
        count = self.head.info.shape[0]
        path = self.directory / LABELS
        if not path.is_file():
            return tuple(f"LABEL_{number}" for number in range(count))
        try:
            labels = orjson.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidAdapter(Problem("", f"{LABELS} cannot be read: {error}")) from error
        if not isinstance(labels, list) or len(labels) != count or not all(isinstance(name, str) for name in labels):
            raise InvalidAdapter(Problem("", f"{LABELS} is not a list of {count} names, as many as the head has rows"))
        return tuple(labels)

    def _sort(self) -> Iterator[str]:
        """Sorts the file's tensors into products and replacements; what is wrong with them."""
        factors: dict[str, dict[str, StoredTensor]] = {}
        for stored, info in self._file.tensors.items():
            name = stored.removeprefix(PREFIX)
            if info.dtype not in FLOATS:
                yield f"{name} is stored as {info.dtype}; one of {', '.join(FLOATS)} is expected"
            elif match := FACTOR.fullmatch(name):
                module = WRAPPERS.sub("", match["module"] + ".")[:-1]
                factors.setdefault(module, {})[match["kind"]] = StoredTensor(stored, self._file, info)
            elif ".lora_" in name:
                yield f"{name} is not a matrix of an ordinary LoRA adapter"
            else:
                self.replacements[WRAPPERS.sub("", name)] = StoredTensor(stored, self._file, info)
        if not factors and not self.replacements:
            yield "the file holds no tensor"
        for module, found in factors.items():
            yield from self._pair(module, found)

    def _pair(self, module: str, found: dict[str, StoredTensor]) -> Iterator[str]:
        embedding = any(kind.startswith("embedding") for kind in found)
        wanted = ("embedding_A", "embedding_B") if embedding else ("A", "B")
        if set(found) != set(wanted):
            there = ", ".join(f"lora_{kind}" for kind in sorted(found))
            yield f"{module} has {there}; lora_{wanted[0]} and lora_{wanted[1]} are expected"
            return
        inner, outer = (found[kind] for kind in wanted)
        if problem := _shape_problem(inner.info, outer.info, self.config.rank_of(module)):
            yield f"{module}: {problem}"
            return
        scale = self.config.scale_of(module)
        self.products[f"{module}.weight"] = Product(inner, outer, scale, embedding, self.config.fan_in_fan_out)


def _shape_problem(inner: TensorInfo, outer: TensorInfo, rank: int) -> str:
    shapes = f"its matrices have shapes {inner.shape} and {outer.shape}"
    if len(inner.shape) != 2 or len(outer.shape) != 2:
        return f"{shapes}; only linear layers and embeddings are supported"
    if inner.shape[0] != rank or outer.shape[1] != rank:
        return f"{shapes}, its configuration means rank {rank}"
    return ""


def _head_names() -> tuple[str, ...]:
    return tuple(f"{name}.weight" for name in CLASSIFIERS)


def _open(directory: Path) -> TensorFile:
    path = directory / WEIGHTS
    if not path.is_file():
        pickled = (directory / PICKLE).is_file()
        advice = f"; {PICKLE} is a pickle, which can run code and is never loaded" if pickled else ""
        raise InvalidAdapter(Problem("", f"{directory} has no {WEIGHTS}{advice}"))
    try:
        return TensorFile(path)
    except (HeaderError, OSError) as error:
        raise InvalidAdapter(Problem("", f"{WEIGHTS} cannot be read: {error}")) from error
