"""Writes a model with its adapter as GGUF files, straight from the two: no merged model is written in between."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from gguf import GGMLQuantizationType
from transformers import PreTrainedTokenizerBase

from export_service.gguf.container import Container, Entry
from export_service.gguf.errors import GgufNotPossible
from export_service.gguf.file_types import FILE_TYPES, FileType, keeps_float32, tensor_type
from export_service.gguf.filling import fill
from export_service.gguf.importance import importance
from export_service.gguf.mixing import mix
from export_service.gguf.modelfile import write_modelfile
from export_service.gguf.outline import Outline
from export_service.gguf.problems import problems
from export_service.gguf.tensors import PlannedTensor, outline_of, planned_tensors
from export_service.gguf.vocabulary import Vocabulary
from modelkit.adapters import Adapter
from modelkit.ending import reply_ends
from modelkit.errors import Problem
from modelkit.inspection import TOKENIZERS, read_json
from modelkit.loading import load_config, load_tokenizer
from modelkit.merging import MergePlan

UNQUANTIZED = "unquantized"
GENERATION = "generation_config.json"
WRITING_SHARE = 0.5  # of the time, when llama.cpp quantizes afterwards

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class GgufJob:
    """What to write: base and adapter are directories in Hugging Face and PEFT form, types names of file types.

    Files are called `stem-TYPE.gguf`. importance_rows are texts as the model was trained on; modelfile asks for an
    Ollama Modelfile beside each file.
    """

    base: Path
    adapter: Path | None
    target_dir: Path
    stem: str
    types: list[str]
    importance_rows: list[str] | None = None
    modelfile: bool = False


def write(job: GgufJob, progress: Progress = lambda _share, _text: None) -> list[Path]:
    """Writes the files and returns their paths; progress hears a share from 0 to 1 and what is being done.

    A file has its name only once it is whole. Memory is a few megabytes beside the adapter's matrices; a mixed type
    takes a file of the model as it is stored beside it while it is written. Raises GgufNotPossible listing every
    problem, QuantizationFailed, InvalidModel, InvalidAdapter or OSError.
    """
    with ExitStack() as stack:
        adapter = stack.enter_context(Adapter(job.adapter)) if job.adapter else None
        plan = stack.enter_context(MergePlan(job.base, adapter))
        outline = outline_of(job.base, plan)
        found = problems(outline.config, job.types, has_text=bool(job.importance_rows))
        if adapter and adapter.head is not None:
            found.append("the adapter makes a text classifier, which GGUF files have no place for; export it merged")
        if found:
            raise GgufNotPossible([Problem("quantizations", text) for text in found])
        return _Writing(job, plan, outline, progress).run()


def tokenizer_of(base: Path, adapter: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer that the adapter was trained with: its own, or else its base model's. Raises InvalidModel."""
    own = adapter is not None and any((adapter / name).is_file() for name in TOKENIZERS)
    return load_tokenizer(adapter if own and adapter else base, load_config(base))


class _Writing:
    def __init__(self, job: GgufJob, plan: MergePlan, outline: Outline, progress: Progress) -> None:
        self.job, self.plan, self.outline, self.progress = job, plan, outline, progress
        self.tensors = planned_tensors(plan, outline)
        self.kinds = [FILE_TYPES[name] for name in dict.fromkeys(job.types)]
        self.mixed = [kind for kind in self.kinds if not kind.direct]
        embeddings = next(tensor for tensor in self.tensors if tensor.name == "token_embd.weight")
        self.tokenizer = tokenizer_of(job.base, job.adapter)
        self.stops = list(dict.fromkeys([*reply_ends(self.tokenizer), *stop_tokens(job.base, outline.config)]))
        architecture = outline.architecture.name
        size = embeddings.shape[0]
        self.vocabulary = Vocabulary(self.tokenizer, size=size, architecture=architecture, stops=self.stops)
        self.size = size

    def run(self) -> list[Path]:
        """Writes everything; see write."""
        self.job.target_dir.mkdir(parents=True, exist_ok=True)
        unquantized = self.job.target_dir / f".{self.job.stem}-{UNQUANTIZED}.gguf"
        try:
            self._write_direct(unquantized)
            self._write_mixed(unquantized)
        finally:
            unquantized.unlink(missing_ok=True)
        paths = [self._path(kind) for kind in self.kinds]
        if self.job.modelfile:
            for path in list(paths):
                name = "Modelfile" if len(self.kinds) == 1 else f"Modelfile-{path.stem.rpartition('-')[2]}"
                paths.append(
                    write_modelfile(
                        self.job.target_dir / name,
                        path.name,
                        tokenizer=self.tokenizer,
                        stops=self.stops,
                        context_length=self.outline.context_length,
                        settings=self.job.base / GENERATION,
                    )
                )
        return paths

    def _path(self, kind: FileType) -> Path:
        return self.job.target_dir / f"{self.job.stem}-{kind.name}.gguf"

    def _write_direct(self, unquantized: Path) -> None:
        direct = [kind for kind in self.kinds if kind.direct]
        share = WRITING_SHARE if self.mixed else 1.0
        names = ", ".join(kind.name for kind in direct) or "the model as it is stored"
        total, done, lock = sum(math.prod(tensor.shape) for tensor in self.tensors), 0, Lock()
        with ExitStack() as stack:
            files = [(self._types(kind), stack.enter_context(self._container(kind))) for kind in direct]
            if self.mixed:
                types = {tensor.name: _stored_type(tensor) for tensor in self.tensors}
                files.append((types, stack.enter_context(self._container(None, unquantized))))

            def wrote(elements: int) -> None:
                nonlocal done
                with lock:
                    done += elements
                    self.progress(share * done / total, f"writing {names}")

            fill(self.tensors, files, wrote)

    def _write_mixed(self, unquantized: Path) -> None:
        if not self.mixed:
            return
        matrix = None
        if any(kind.importance for kind in self.mixed):
            tell = partial(self.progress, WRITING_SHARE, "computing the importance of each column from training text")
            tell()
            rows = self.job.importance_rows or []
            matrix = importance(self.job.base, self.job.adapter, self.outline, self.tokenizer, rows, tick=tell)
        for at, kind in enumerate(self.mixed):
            share = WRITING_SHARE + (1 - WRITING_SHARE) * at / len(self.mixed)
            tell = partial(self.progress, share, f"quantizing to {kind.name}")
            tell()
            mix(unquantized, self._path(kind), kind, matrix if kind.importance else None, tick=tell)
        self.progress(1.0, f"quantized to {self.mixed[-1].name}")

    def _types(self, kind: FileType) -> dict[str, GGMLQuantizationType]:
        tied = not any(tensor.name == "output.weight" for tensor in self.tensors)
        return {tensor.name: tensor_type(kind, tensor.name, tensor.shape, tied=tied) for tensor in self.tensors}

    def _container(self, kind: FileType | None, path: Path | None = None) -> Container:
        types = self._types(kind) if kind else {tensor.name: _stored_type(tensor) for tensor in self.tensors}
        architecture = self.outline.architecture.name
        outline = {f"{architecture}.{key}": value for key, value in self.outline.metadata().items()}
        metadata = {
            "general.type": "model",
            "general.name": self.vocabulary.model_name(self.job.stem),
            "general.quantization_version": 2,
            **({"general.file_type": int(kind.number)} if kind else {}),
            f"{architecture}.vocab_size": self.size,
            **outline,
            **self.vocabulary.metadata(),
        }
        entries = [Entry(tensor.name, tensor.shape, types[tensor.name]) for tensor in self.tensors]
        return Container(path or self._path(kind or FILE_TYPES["F32"]), architecture, metadata, entries)


def stop_tokens(base: Path, config: dict[str, Any]) -> list[int]:
    """Numbers of the tokens that end a reply, by a model's configuration and what it says on generation."""
    found: list[int] = []
    generation = read_json(base / GENERATION) if (base / GENERATION).is_file() else {}
    for ends in (config.get("eos_token_id"), generation.get("eos_token_id")):
        found += ends if isinstance(ends, list) else [ends] if ends is not None else []
    return list(dict.fromkeys(found))


def _stored_type(tensor: PlannedTensor) -> GGMLQuantizationType:
    """The type in a file that nothing is lost in."""
    if keeps_float32(tensor.name, tensor.shape) or tensor.dtype not in ("F16", "BF16"):
        return GGMLQuantizationType.F32
    return GGMLQuantizationType[tensor.dtype]
