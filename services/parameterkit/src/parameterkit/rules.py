"""What holds between parameters: which of two wins, and which do not go together."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from parameterkit.messages import ENGLISH, Problem, Text
from parameterkit.parameter import enum_words
from parameterkit.table import BY_NAME, BY_PATH
from tunesmith.task.v1 import spec_pb2

# Of each group one value decides. Where a caller has decided, neither a template nor a default may decide otherwise.
ALTERNATIVES = (
    frozenset({"max_steps", "num_train_epochs"}),
    frozenset({"warmup_steps", "warmup_ratio"}),
    frozenset({"fp16", "bf16"}),
)
# A default is left out when its caller gave the other parameter, which would lose against it or exclude it.
SHADOWED_BY = {"warmup_steps": "warmup_ratio", "fp16": "bf16"}
# A default that is the value of another parameter.
DERIVED = {"per_device_eval_batch_size": "per_device_train_batch_size", "eval_steps": "logging_steps"}

# What a person should know of this module.
PRECEDENCE = (
    Text("`warmup_steps` above 0 wins over `warmup_ratio`.", "`warmup_steps` 大于 0 时优先于 `warmup_ratio`。"),
    Text("`max_steps` above 0 wins over `num_train_epochs`.", "`max_steps` 大于 0 时优先于 `num_train_epochs`。"),
    Text("`fp16` and `bf16` exclude each other.", "`fp16` 与 `bf16` 互斥。"),
    Text(
        "Two names of one parameter may both be given when their values are equal; otherwise that is an error.",
        "同一参数的两个名称可以同时给出，但取值必须相同，否则报错。",
    ),
    Text(
        "Early stopping and the schedule `reduce_lr_on_plateau` need an `eval_strategy` other than `no`.",
        "早停和 `reduce_lr_on_plateau` 调度器需要 `eval_strategy` 不为 `no`。",
    ),
    Text("`eval_ratio` and `test_ratio` together stay below 1.", "`eval_ratio` 与 `test_ratio` 之和小于 1。"),
    Text(
        "`text_column` excludes `prompt_column` and `response_column`, which go together.",
        "`text_column` 与 `prompt_column`、`response_column` 互斥；后两者须同时给出。",
    ),
    Text(
        "Any quantization means QLoRA; full fine-tuning excludes it.",
        "启用量化即为 QLoRA；全量微调不能与量化同时使用。",
    ),
    Text("`lora_alpha` = 2 x `lora_r` is advice, never enforced.", "`lora_alpha` = 2 × `lora_r` 只是建议，不会强制。"),
)


def warmup(warmup_steps: int, warmup_ratio: float, total_steps: int) -> int:
    """Optimiser steps of warm-up: a number of steps wins over a share of all steps."""
    return warmup_steps if warmup_steps > 0 else math.ceil(warmup_ratio * total_steps)


def total_steps(max_steps: int, num_train_epochs: float, steps_per_epoch: int) -> int:
    """Optimiser steps of a training: a number of steps wins over epochs."""
    return max_steps if max_steps > 0 else math.ceil(num_train_epochs * steps_per_epoch)


def settle_method(spec: spec_pb2.FinetuneSpec) -> None:
    """Quantization that is asked for means QLoRA, in place, when no method is named."""
    model = spec.language_model
    if model.HasField("quantization") and not model.method:
        model.method = spec_pb2.METHOD_QLORA


def applies(name: str, method: str, scheduler: str) -> bool:
    """Whether a parameter matters with a method ("full", "lora", "qlora") and a learning rate schedule."""
    if name == "lr_scheduler_num_cycles":
        return scheduler == "cosine_with_restarts"
    methods = BY_NAME[name].methods
    return not methods or method in methods


@dataclass(frozen=True, slots=True)
class Breach:
    """Parameters that do not go together: the path of the one to change, and the other one's."""

    path: str
    text: Text
    other: str = ""

    def problem(self, name: Callable[[str], str] = str, language: str = ENGLISH) -> Problem:
        """It as a problem; name says what the caller calls a path."""
        return Problem(name(self.path), self.text.say(language, other=name(self.other) if self.other else ""))


_PRECISION = Text("excludes {other}; choose one", "与 {other} 互斥，只能启用一个")
_RATIOS = Text("together with {other} leaves no rows to train on", "与 {other} 之和不能达到 1，否则没有训练数据")
_EARLY = Text("early stopping needs {other} other than no", "早停需要 {other} 不为 no")
_PLATEAU = Text("reduce_lr_on_plateau needs {other} other than no", "reduce_lr_on_plateau 需要 {other} 不为 no")
_COLUMNS = Text(
    "excludes {other}: name a text column, or a prompt and a response column", "与 {other} 互斥，只能指定其一"
)
_PAIR = Text("needs {other} too", "需要同时指定 {other}")


def problems(spec: spec_pb2.FinetuneSpec) -> list[Problem]:
    """Every pair of parameters in a specification that do not go together, in English, with paths within it.

    What is not set counts as the platform's default.
    """
    return [breach.problem() for breach in breaches(spec)]


def breaches(spec: spec_pb2.FinetuneSpec) -> Iterator[Breach]:
    """As `problems`, in no language yet."""
    read = partial(value, spec)
    yield from training_breaches(read)
    if spec.HasField("language_model"):
        if read("language_model.eval_ratio") + read("language_model.test_ratio") >= 1:
            yield Breach("language_model.test_ratio", _RATIOS, "language_model.eval_ratio")
        yield from _columns(spec.dataset.columns)


def training_breaches(read: Callable[[str], Any]) -> Iterator[Breach]:
    """Those of every modality; read gives the plain value at a path such as "training.fp16"."""
    if read("training.fp16") and read("training.bf16"):
        yield Breach("training.fp16", _PRECISION, "training.bf16")
    if read("training.eval_strategy") == "no":
        if read("training.early_stopping_patience"):
            yield Breach("training.early_stopping_patience", _EARLY, "training.eval_strategy")
        if read("training.lr_scheduler_type") == "reduce_lr_on_plateau":
            yield Breach("training.lr_scheduler_type", _PLATEAU, "training.eval_strategy")


def _columns(columns: spec_pb2.DatasetColumns) -> Iterator[Breach]:
    prompt, response = "dataset.columns.prompt", "dataset.columns.response"
    if columns.text and (columns.prompt or columns.response):
        yield Breach("dataset.columns.text", _COLUMNS, prompt if columns.prompt else response)
    elif columns.prompt and not columns.response:
        yield Breach(prompt, _PAIR, response)
    elif columns.response and not columns.prompt:
        yield Breach(response, _PAIR, prompt)


def value(spec: spec_pb2.FinetuneSpec, path: str) -> Any:
    """What a specification says at a path, in plain types; the platform's default where it says nothing."""
    row = BY_PATH[path]
    *parents, name = path.split(".")
    holder: Any = spec
    for parent in parents:
        holder = getattr(holder, parent)
    if row.field.has_presence and not holder.HasField(name):
        return row.default
    found = getattr(holder, name)
    return _word(row.field.enum_type, found) if row.field.enum_type is not None else found


def _word(enum: Any, number: int) -> str:
    words: Mapping[str, int] = enum_words(enum)
    return next((word for word, value in words.items() if value == number), "")
