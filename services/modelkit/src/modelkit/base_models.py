"""Finds and checks the base model that a user names; nothing is downloaded and no weight is read."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelkit import chatglm
from modelkit.catalogue import CATALOGUE, CatalogueEntry, hub_id
from modelkit.datasets import DataCache
from modelkit.errors import InvalidModel, Problem
from modelkit.hub_cache import default_hub_cache, newest_snapshot
from modelkit.inspection import Inspection, gguf_message, inspect
from modelkit.paths import AllowedRoots

MAX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A base model that can be trained.

    family is the model_type, architecture the class; sha256 identifies config.json and the weights' names, shapes and
    sizes; parameters counts weights, weight_bytes their storage; dtype is that of most weights ("float32", ...).
    config is config.json; notes say what was passed over in it; layers are the names of its matrices ("q_proj", ...).
    A model that needs conversion is described as it will be then; `BaseModels.ready` converts it.
    """

    id: str
    directory: Path
    family: str
    architecture: str
    sha256: str
    parameters: int
    weight_bytes: int
    dtype: str
    config: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()
    layers: frozenset[str] = field(default=frozenset(), repr=False)
    needs_conversion: bool = False


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A model of the catalogue or one found below the roots; local when its files are on this machine."""

    entry: CatalogueEntry
    local: bool


class BaseModels:
    """Resolves names of base models beneath allowed roots and in the local Hugging Face cache.

    conversions is where models are kept that had to be converted; hold what is in use.
    """

    def __init__(
        self,
        roots: AllowedRoots,
        *,
        hub_cache: str | os.PathLike[str] | None = None,
        conversions: DataCache | None = None,
    ) -> None:
        self.conversions = conversions
        self._roots = roots
        self._hub_cache = Path(hub_cache) if hub_cache is not None else default_hub_cache()
        self._is_allowed = AllowedRoots([*roots.roots, self._hub_cache], private=roots.private).contains

    def resolve(self, name: str, *, field: str = "base_model", own_tokenizer: bool = True) -> ResolvedModel:
        """The model that a directory, catalogue id or hub id names; without own_tokenizer it needs none.

        Raises PathNotAllowed for a path outside the roots, and InvalidModel listing every problem of the model.
        """
        directory = self.locate(name, field=field)
        found = inspect(directory, self._is_allowed, own_tokenizer=own_tokenizer)
        return describe(name, directory, found, field=field)

    def ready(self, model: ResolvedModel) -> Path:
        """The directory to load a model from, converted first when it needs that, which reads and writes all of it.

        Raises InvalidModel or OSError.
        """
        if not model.needs_conversion:
            return model.directory
        if self.conversions is None:
            raise InvalidModel(
                Problem("base_model", f"{model.directory} needs conversion, and there is no place for it")
            )
        return chatglm.convert(model.directory, self.conversions, sha256=model.sha256)

    def locate(self, name: str, *, field: str = "base_model") -> Path:
        """The directory of a model, not yet checked. Raises PathNotAllowed or InvalidModel."""
        if _is_path(name):
            return self._checked_directory(self._roots.resolve(name, field=field), name, field)
        ids = list(dict.fromkeys((name, hub_id(name))))
        for known in ids:
            for root in self._roots.roots:
                candidate = root / known
                if candidate.exists() and self._roots.contains(candidate):
                    return self._checked_directory(Path(os.path.realpath(candidate)), name, field)
            if snapshot := self._cached(known):
                return snapshot
        tried = ", ".join(str(root / ids[-1]) for root in self._roots.roots[:4])
        message = (
            f"{name!r} is not on this machine and nothing is downloaded; put its files into one of {tried}, or give "
            "the directory that holds them"
        )
        raise InvalidModel(Problem(field, message), reason="MODEL_NOT_FOUND")

    def offered(self, modality: str = "") -> list[OfferedModel]:
        """The catalogue, and the language models found below the roots and in the hub cache."""
        offered = [
            OfferedModel(entry, self._is_local(entry.id))
            for entry in CATALOGUE
            if not modality or entry.modality == modality
        ]
        if modality in ("", "language_model"):
            offered += [OfferedModel(entry, True) for entry in self._found()]
        return offered

    def _found(self) -> Iterator[CatalogueEntry]:
        """What lies below the roots where users may name it, each directory once though roots contain each other."""
        found = (_model_directories(root, MAX_DEPTH, self._roots.contains) for root in self._roots.roots)
        for directory in dict.fromkeys(itertools.chain.from_iterable(found)):
            try:
                model = describe(str(directory), directory, inspect(directory, self._is_allowed), field="")
            except InvalidModel:
                continue
            size = _human_count(model.parameters)
            text = f"{model.architecture} in {directory}"
            yield CatalogueEntry(str(directory), directory.name, model.family, size, text)

    def _is_local(self, name: str) -> bool:
        try:
            self.locate(name)
        except InvalidModel:
            return False
        return True

    def _checked_directory(self, path: Path, name: str, field: str) -> Path:
        if path.is_dir():
            return path
        if path.suffix.lower() == ".gguf":
            raise InvalidModel(Problem(field, gguf_message(path.name)), reason="MODEL_IS_GGUF")
        raise InvalidModel(Problem(field, f"{name!r} is a file; give the directory with config.json and *.safetensors"))

    def _cached(self, name: str) -> Path | None:
        """The newest snapshot of a hub id in the local cache."""
        if name.count("/") > 1 or ".." in name:
            return None
        return newest_snapshot(self._hub_cache / f"models--{name.replace('/', '--')}")


def describe(name: str, directory: Path, inspection: Inspection, *, field: str) -> ResolvedModel:
    """The model of an inspected directory. Raises InvalidModel with all the problems that were found."""
    if inspection.problems:
        raise InvalidModel([Problem(field, problem) for problem in inspection.problems], reason=inspection.reason)
    return ResolvedModel(
        id=name,
        directory=directory,
        family=inspection.config["model_type"],
        architecture=inspection.architecture,
        sha256=_fingerprint(inspection.identity),
        parameters=inspection.parameters,
        weight_bytes=inspection.weight_bytes,
        dtype=inspection.dtype,
        config=inspection.config,
        notes=tuple(inspection.notes),
        layers=frozenset(inspection.layers),
        needs_conversion=inspection.needs_conversion,
    )


def _is_path(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith((".", "~")) or "\\" in name or "\0" in name or ".." in name


def _fingerprint(parts: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _model_directories(root: Path, depth: int, allowed: Callable[[Path], bool]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    names = {entry.name for entry in entries}
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        yield root
        return
    if depth:
        folders = (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
        for folder in folders:
            if not folder.name.startswith((".", "checkpoint-")) and allowed(folder):
                yield from _model_directories(folder, depth - 1, allowed)


def _human_count(number: int) -> str:
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)
