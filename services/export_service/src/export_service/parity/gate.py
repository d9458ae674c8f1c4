"""Compares what was exported with what was trained: the base model with the adapter on it, in float32."""

import gc
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export_service.gguf.job import GgufJob, tokenizer_of, write
from export_service.parity import llama, reference
from export_service.parity.checks import (
    BOUNDLESS,
    FORMS,
    GREEDY,
    LOGITS,
    PERPLEXITY,
    TEMPLATE,
    WEIGHTS,
    Check,
    Limits,
    made,
)
from export_service.parity.conversations import TOLD_CHARACTERS, Writing, differences, writing_in, writing_of
from export_service.parity.reference import Readings, Tick
from export_service.parity.weights import worst_weights
from modelkit.adapters import Adapter
from modelkit.loading import load_model
from modelkit.merging import MergePlan

MAX_PROMPTS, MAX_TOKENS = 8, 256
ADAPTER = "-lora"  # at the end of the name of a file that holds an adapter alone
TIE_MARGIN = 4.0  # times the allowed root mean square of the difference of logits
# What tokenizers trip over, beside the prompts: spaces, line breaks, numbers, scripts, signs.
TEXTS = (
    "Hello, world",
    "  two  spaces,\ttab\n\n\nand lines \n ",
    "你好，世界！模型训练 12345 一二三",
    "I'll say it's 3.14159; don't WE'LL",
    "naïve café 😀",
)


def check(
    base: Path,
    adapter: Path | None,
    merged: Path | None,
    gguf_files: Sequence[Path],
    prompts: Sequence[str],
    *,
    progress: Any = lambda _share, _text: None,
) -> list[Check]:
    """Every check of an export's forms, in the order of the forms; one that failed has passed = False.

    base and adapter are what was trained; an adapter of None stands for a model that was trained whole, or the base
    alone. merged is a directory in Hugging Face form. Names of GGUF files end with their type, as export_service.gguf
    gives them. prompts are questions as users ask them. Raises InvalidModel, InvalidAdapter or OSError where nothing
    can be compared.
    """
    gate = _Gate(base, adapter, prompts, progress)
    found: list[Check] = []
    steps = 1 + (merged is not None) + len(gguf_files)
    tell = partial(progress, 0.0, "asking the trained model")
    tell()
    gate.prepare(tell)
    if merged is not None:
        tell = partial(progress, 1 / steps, f"comparing {merged.name}")
        tell()
        found += gate.merged(merged, tell)
    for at, file in enumerate(gguf_files):
        tell = partial(progress, (steps - len(gguf_files) + at) / steps, f"comparing {file.name}")
        tell()
        found += gate.gguf(file, tell)
    progress(1.0, "compared")
    return found


class _Gate:
    def __init__(self, base: Path, adapter: Path | None, prompts: Sequence[str], progress: Any) -> None:
        self.base, self.adapter = base, adapter
        self.tokenizer: Any = tokenizer_of(base, adapter)
        self.labels: tuple[str, ...] = ()
        if adapter is not None:
            with Adapter(adapter) as opened:
                self.labels = opened.labels
        self.asked = [prompt for prompt in prompts if prompt.strip()][:MAX_PROMPTS] or list(TEXTS)
        self.writing = writing_of(self.tokenizer)
        self.written = self.writing.texts(self.asked)
        self.sequences: list[list[int]] = []
        self.wanted: Readings
        with MergePlan(base) as plan:
            self.stored = {tensor.dtype for tensor in plan.tensors.values()} & FORMS.keys()
            self.dtype = reference.compute_type(sum(tensor.stored.info.elements for tensor in plan.tensors.values()))
        if self.dtype == torch.bfloat16:
            self.stored.add("BF16")

    def prepare(self, tick: Tick) -> None:
        """Asks the trained model."""
        model = reference.adapted_model(self.base, self.adapter, self.dtype)
        texts = [text or prompt for text, prompt in zip(self.written, self.asked, strict=False)]
        prompts = [self._tokens(text)[:MAX_TOKENS] for text in texts]
        self.sequences = prompts if self.labels else reference.replies(model, prompts, tick)
        self.wanted = self._read(model, tick)
        del model
        gc.collect()

    def merged(self, directory: Path, tick: Tick) -> Iterator[Check]:
        """Checks of a merged model."""
        model = load_model(directory, dtype=self.dtype, labels=self.labels or None).eval()
        got = self._read(model, tick)
        yield from self._compared(directory.name, got, self._limits("F32"))
        tokenizer: Any = tokenizer_of(directory, None)
        tokens = [_numbers(tokenizer, text) for text in self._texts()]
        yield self._template(directory.name, writing_of(tokenizer), tokens)

    def gguf(self, file: Path, tick: Tick) -> Iterator[Check]:
        """Checks of a GGUF file."""
        if file.stem.endswith(ADAPTER):
            yield from self._adapter_file(file, tick)
            return
        try:
            name, share = worst_weights(self.base, self.adapter, file, tick)
            writing = writing_in(file)
            answer = llama.ask(file, self.sequences, self._texts(), tick=tick)
        except llama.GgufUnreadable as error:
            yield Check(file.name, LOGITS, BOUNDLESS, 0.0, passed=False, text=str(error))
            return
        yield made(file.name, WEIGHTS, share, 1.0, f"weights furthest off ({name}), as a share of what is allowed:")
        yield self._template(file.name, writing, answer.tokens)
        yield from self._compared(file.name, answer.readings, self._limits(file.stem.rpartition("-")[2]))

    def _adapter_file(self, file: Path, tick: Tick) -> Iterator[Check]:
        """Checks of an adapter's GGUF file on one of its base model, which is written for that and thrown away."""
        kind = next((name for name in ("BF16", "F16") if self.stored == {name}), "F32")
        with tempfile.TemporaryDirectory(prefix=".parity-", dir=file.parent) as folder:
            (base,) = write(GgufJob(self.base, None, Path(folder), "base", [kind]), lambda _share, _text: tick())
            try:
                answer = llama.ask(base, self.sequences, [], adapter=file, tick=tick)
            except llama.GgufUnreadable as error:
                yield Check(file.name, LOGITS, BOUNDLESS, 0.0, passed=False, text=str(error))
                return
        yield from self._compared(file.name, answer.readings, self._limits(kind))

    def _texts(self) -> list[str]:
        """What tokenizers are compared on: conversations as training wrote them, and TEXTS."""
        return [*(text for text in self.written if text is not None), *TEXTS]

    def _template(self, artifact: str, writing: Writing, tokens: Sequence[Sequence[int]]) -> Check:
        """Whether conversations are written as in training and become the same tokens, those of _texts."""
        found = list(differences(self.writing, writing, self.asked))
        found += [
            f"other tokens for {text[:TOLD_CHARACTERS]!r}"
            for text, got in zip(self._texts(), tokens, strict=True)
            if list(got) != self._tokens(text)
        ]
        first = f" ({found[0]})" if found else ""
        return made(artifact, TEMPLATE, len(found), 0, f"differences in how texts are written and read{first}:")

    def _limits(self, kind: str) -> Limits:
        """Those of a form; rounding to what the base model is stored in is allowed to every one."""
        limits = FORMS[kind]
        for stored in self.stored:
            rounding = FORMS[stored]
            limits = replace(
                limits,
                logits=max(limits.logits, rounding.logits),
                perplexity=max(limits.perplexity, rounding.perplexity),
            )
        return limits

    def _read(self, model: Any, tick: Tick) -> Readings:
        return (reference.read_classes if self.labels else reference.read)(model, self.sequences, tick)

    def _tokens(self, text: str) -> list[int]:
        return _numbers(self.tokenizer, text)

    def _compared(self, artifact: str, got: Readings, limits: Limits) -> Iterator[Check]:
        wanted = self.wanted
        if got.logits.shape[-1] != wanted.logits.shape[-1]:
            sizes = f"{got.logits.shape[-1]} answers instead of {wanted.logits.shape[-1]}"
            yield Check(artifact, LOGITS, BOUNDLESS, limits.logits, passed=False, text=f"{artifact}: {sizes}")
            return
        error, scale = _difference(got.logits, wanted.logits)
        yield made(artifact, LOGITS, error / scale if scale else error, limits.logits, "logits differ by")
        margin = TIE_MARGIN * limits.logits * scale if limits.greedy < 1 else 0.0
        others = _others(got.logits, wanted.logits, margin)
        yield made(artifact, GREEDY, others, limits.greedy, "share of other greedy tokens:")
        if not self.labels:
            difference = abs(got.loss - wanted.loss) / max(1.0, wanted.loss)
            yield made(
                artifact,
                PERPLEXITY,
                difference,
                limits.perplexity,
                "logarithm of perplexity differs by a share of",
            )


def _numbers(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _difference(got: reference.Logits, wanted: reference.Logits) -> tuple[float, float]:
    """Root mean squares of the difference and of the wanted logits, without what softmax takes no notice of."""
    difference = (got - wanted).astype(np.float64)
    difference -= difference.mean(-1, keepdims=True)
    centred = wanted - wanted.mean(-1, keepdims=True, dtype=np.float64)
    return float(np.sqrt(np.square(difference).mean())), float(np.sqrt(np.square(centred).mean()))


def _others(got: reference.Logits, wanted: reference.Logits, margin: float) -> float:
    """The share of positions whose likeliest token is another one, ties apart: one that is less likely by a margin."""
    chosen = np.take_along_axis(wanted, got.argmax(-1)[..., None], -1)[..., 0]
    return float((wanted.max(-1) - chosen > margin).mean())
