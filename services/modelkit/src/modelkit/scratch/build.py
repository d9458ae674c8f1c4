"""Builds a scratch model: tokenizer from the corpus, seeded weights, safetensors."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from modelkit.errors import InvalidModel, Problem
from modelkit.loading import quieten
from modelkit.scratch.families import FAMILIES, Family
from modelkit.scratch.training import BYTES, train_tokenizer

HEAD_WIDTH = 64
MAX_LINE_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class ScratchModel:
    """A model that was built."""

    directory: Path
    family: str
    parameters: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model. max_length is the longest sequence it can read, in tokens."""

    hidden_size: int
    layers: int
    vocab_size: int
    max_length: int

    @property
    def heads(self) -> int:
        """Attention heads; always a divisor of the hidden size."""
        wide = self.hidden_size % HEAD_WIDTH == 0 and self.hidden_size >= 4 * HEAD_WIDTH
        return self.hidden_size // HEAD_WIDTH if wide else 4

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layers, 8/3 of the hidden size; K-quants need rows of 256."""
        multiple = 256 if self.hidden_size % 256 == 0 else 32
        return -(-8 * self.hidden_size // 3 // multiple) * multiple


def build(
    out_dir: str | Path,
    *,
    family: str = "llama",
    hidden_size: int = 256,
    layers: int = 4,
    vocab_size: int = 4096,
    corpus: str | Path | Iterable[str],
    max_length: int = 4096,
    seed: int = 0,
) -> ScratchModel:
    """Writes a small untrained model to out_dir, which must not exist or be empty.

    corpus is a text file (of a .jsonl file the strings are taken) or texts; the tokenizer is trained on it. vocab_size
    counts every token, the special ones included, and is the model's number of embeddings. The same arguments give the
    same files. Raises InvalidModel listing all that is wrong.
    """
    target = Path(out_dir)
    shape = Shape(hidden_size, layers, vocab_size, max_length)
    problems = [*_shape_problems(shape), *_corpus_problems(corpus), *_family_problems(family), *_place_problems(target)]
    if problems:
        raise InvalidModel(problems)
    with _written_whole(target) as staging:
        tokenizer = train_tokenizer(FAMILIES[family], vocab_size, _texts(corpus))
        parameters = _write_model(FAMILIES[family], tokenizer, shape, staging, seed)
    return ScratchModel(target, family, parameters, vocab_size)


@contextlib.contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """An empty directory that gets the target's name when all went well, and goes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)
        for file in staging.iterdir():
            file.chmod(0o644)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _family_problems(family: str) -> Iterator[Problem]:
    if family not in FAMILIES:
        yield Problem("family", f"{family!r} is not one of {', '.join(FAMILIES)}")


def _place_problems(target: Path) -> Iterator[Problem]:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        yield Problem("out_dir", f"{target} exists and is not an empty directory")


def _shape_problems(shape: Shape) -> Iterator[Problem]:
    if shape.hidden_size < 32 or shape.hidden_size % 16:
        yield Problem("hidden_size", f"{shape.hidden_size} must be a multiple of 16, at least 32")
    if shape.layers < 1:
        yield Problem("layers", f"{shape.layers} must be at least 1")
    least = BYTES + max(len(known.special_tokens) for known in FAMILIES.values())
    if shape.vocab_size < least:
        yield Problem("vocab_size", f"{shape.vocab_size} must be at least {least}: one for each byte and marker")


def _corpus_problems(corpus: str | Path | Iterable[str]) -> Iterator[Problem]:
    if isinstance(corpus, str | Path):
        if not Path(corpus).is_file():
            yield Problem("corpus", f"{corpus} is not a file")
        elif Path(corpus).stat().st_size == 0:
            yield Problem("corpus", f"{corpus} is empty")


def _texts(corpus: str | Path | Iterable[str]) -> Iterator[str]:
    if not isinstance(corpus, str | Path):
        yield from corpus
        return
    with Path(corpus).open("r", encoding="utf-8", errors="replace") as file:
        as_json = Path(corpus).suffix == ".jsonl"
        while line := file.readline(MAX_LINE_CHARACTERS):
            if not as_json:
                yield line
                continue
            try:
                yield from _strings(orjson.loads(line))
            except ValueError:
                yield line


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _write_model(kind: Family, tokenizer: Any, shape: Shape, directory: Path, seed: int) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind.model_type,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2 if shape.heads % 2 == 0 else shape.heads,
        head_dim=shape.hidden_size // shape.heads,
        max_position_embeddings=shape.max_length,
        tie_word_embeddings=kind.tie_word_embeddings,
        rope_parameters=dict(kind.rope),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(kind.stop_tokens)),
        pad_token_id=tokenizer.pad_token_id,
        **kind.extra,
    )
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
    quieten()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    settings = directory / "tokenizer_config.json"
    values = orjson.loads(settings.read_bytes()) | {"tokenizer_class": kind.tokenizer_class}
    settings.write_bytes(orjson.dumps(values, option=orjson.OPT_INDENT_2))
    return int(model.num_parameters())
