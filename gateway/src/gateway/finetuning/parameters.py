"""trainingArgs and gpuConfig to a FinetuneSpec, with this surface's defaults; every problem is collected."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from gateway.finetuning.arguments import (
    BY_NAME,
    DEFAULTS,
    KNOWN_NAMES,
    QUANTIZATION,
    QUANTIZATIONS,
    SWITCHES,
    USE_4BIT,
    USE_8BIT,
    Argument,
    choice,
    near,
    parse,
    received,
    truth,
)
from servicekit.errors import Problem
from tunesmith.task.v1 import spec_pb2

TRAINING_ARGS, GPU_CONFIG = "trainingArgs", "gpuConfig"

CUDA_DEVICES, MEMORY, PROCESSES = "cuda_visible_devices", "memory_optimization", "processes"
_GPU_NAMES = {
    CUDA_DEVICES: CUDA_DEVICES,
    "cudaVisibleDevices": CUDA_DEVICES,
    "devices": CUDA_DEVICES,
    MEMORY: MEMORY,
    "memory_optimisation": MEMORY,
    "memoryOptimization": MEMORY,
    PROCESSES: PROCESSES,
}
_DEVICES = re.compile(r"([0-9]+(,[0-9]+)*)?")
_MOST_PROCESSES = 64
_FOUR_BIT = ("nf4", "fp4", "int4")


class Parameters:
    """Reads the parameters of one request into a spec; problems says what is wrong, defaults what was filled in."""

    def __init__(self, spec: spec_pb2.FinetuneSpec) -> None:
        self._spec = spec
        self.problems: list[Problem] = []
        self.default_fields: list[str] = []
        self._given: dict[str, tuple[str, Any]] = {}

    def training_args(self, arguments: Mapping[str, Any], where: str = TRAINING_ARGS) -> None:
        """Takes named arguments; null counts as not given."""
        for name, value in arguments.items():
            path = f"{where}.{name}"
            if name in BY_NAME:
                argument = BY_NAME[name]
                self._take(argument.name, path, value, partial(parse, argument))
            elif name in SWITCHES:
                self._take(SWITCHES[name], path, value, _quantization if name == QUANTIZATION else truth)
            else:
                self._problem(path, f"未知参数{near(name, KNOWN_NAMES)}")

    def gpu_config(self, config: Mapping[str, Any]) -> None:
        """Takes devices, the number of processes and the memory switch."""
        parsers = {CUDA_DEVICES: _devices, MEMORY: truth, PROCESSES: _processes}
        for name, value in config.items():
            path = f"{GPU_CONFIG}.{name}"
            if name in _GPU_NAMES:
                self._take(_GPU_NAMES[name], path, value, parsers[_GPU_NAMES[name]])
            else:
                self._problem(path, f"未知参数{near(name, _GPU_NAMES)}")

    def finish(self) -> None:
        """Fills the spec: what was given, what follows from it, then the defaults."""
        self._save_memory()
        if self._value("fp16") and self._value("bf16"):
            self._problem(self._path("fp16"), f"与 {self._path('bf16')} 互斥，只能启用一个")
            del self._given["bf16"]
        method = self._method()
        for name, (_, value) in self._given.items():
            if name in BY_NAME and self._applies(BY_NAME[name], method):
                self._set(BY_NAME[name], value)
        self._devices()
        self._defaults(method)

    def _take(self, name: str, path: str, value: Any, parser: Any) -> None:
        if value is None:
            return
        try:
            parsed = parser(value)
        except ValueError as error:
            self._problem(path, str(error))
            return
        other, earlier = self._given.setdefault(name, (path, parsed))
        if earlier != parsed:
            self._problem(path, f"与 {other} 含义相同但取值不同")

    def _value(self, name: str) -> Any:
        return self._given[name][1] if name in self._given else None

    def _path(self, name: str) -> str:
        return self._given[name][0]

    def _problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def _set(self, argument: Argument, value: Any) -> None:
        *parents, name = argument.path.split(".")
        holder: Any = self._spec
        for parent in parents:
            holder = getattr(holder, parent)
        if isinstance(value, list):
            getattr(holder, name).extend(value)
        else:
            setattr(holder, name, value)

    def _save_memory(self) -> None:
        """The memory switch recomputes activations, which costs time and no quality."""
        if self._value(MEMORY):
            path, chosen = self._given.setdefault("gradient_checkpointing", (self._path(MEMORY), True))
            if chosen is False:
                self._problem(self._path(MEMORY), f"与 {path}=false 矛盾")

    def _method(self) -> int:
        """The method that the arguments mean; sets it and the kind of quantization."""
        quantization = self._quantization_type()
        chosen = self._value("method")
        if chosen == spec_pb2.METHOD_FULL and quantization:
            self._problem(self._path("method"), "全量微调 (full) 不能与量化参数同时使用，请改用 qlora")
        if quantization and chosen in (None, spec_pb2.METHOD_LORA):
            chosen = spec_pb2.METHOD_QLORA
        if chosen is None:
            chosen = parse(BY_NAME["method"], DEFAULTS["method"])
            self.default_fields.append(f"finetune.{BY_NAME['method'].path}")
        path = self._given.get("method", ("", None))[0]
        self._given["method"] = (path, chosen)
        if quantization:
            self._given["bnb_4bit_quant_type"] = (path, quantization)
        return int(chosen)

    def _quantization_type(self) -> str:
        """What the weights are quantized to; empty when they are not, or when qlora is left to its default."""
        four, eight, word = self._value(USE_4BIT), self._value(USE_8BIT), self._value(QUANTIZATION)
        asked = self._value("bnb_4bit_quant_type")
        wanted = word if word not in (None, "none") else ""
        if four and eight:
            self._problem(self._path(USE_8BIT), f"与 {self._path(USE_4BIT)} 互斥，只能启用一个")
        elif word is not None and self._disagree(four, word, asked or "nf4", _FOUR_BIT):
            self._problem(self._path(QUANTIZATION), f"与 {self._path(USE_4BIT)} 含义相同但取值不同")
        elif word is not None and self._disagree(eight, word, "int8", ("int8",)):
            self._problem(self._path(QUANTIZATION), f"与 {self._path(USE_8BIT)} 含义相同但取值不同")
        elif wanted in _FOUR_BIT and asked not in (None, wanted):
            self._problem(self._path(QUANTIZATION), f"与 {self._path('bnb_4bit_quant_type')} 含义相同但取值不同")
        if eight:
            return "int8"
        return wanted or ((asked or "nf4") if four else "")

    @staticmethod
    def _disagree(switch: bool | None, word: str, on: str, family: tuple[str, ...]) -> bool:
        if switch is None:
            return False
        return word != on if switch else word in family

    @staticmethod
    def _applies(argument: Argument, method: int) -> bool:
        if argument.path.startswith("language_model.lora."):
            return method in (spec_pb2.METHOD_LORA, spec_pb2.METHOD_QLORA)
        if argument.path.startswith("language_model.quantization."):
            return method == spec_pb2.METHOD_QLORA
        return True

    def _devices(self) -> None:
        if self._value(CUDA_DEVICES):
            self._spec.devices.cuda_visible_devices = self._value(CUDA_DEVICES)
        if self._value(PROCESSES):
            self._spec.devices.processes = self._value(PROCESSES)

    def _defaults(self, method: int) -> None:
        if self._value("eval_steps") is not None and self._value("eval_strategy") is None:
            self._spec.training.eval_strategy = spec_pb2.INTERVAL_STRATEGY_STEPS
        for name, value in DEFAULTS.items():
            argument = BY_NAME[name]
            # A default of warmup_steps would win over the ratio that the caller asked for.
            shadowed = name == "warmup_steps" and self._value("warmup_ratio") is not None
            if self._value(name) is None and not shadowed and self._applies(argument, method):
                self._set(argument, parse(argument, value))
                self.default_fields.append(f"finetune.{argument.path}")


def _quantization(value: Any) -> str:
    return choice(value, QUANTIZATIONS)


def _devices(value: Any) -> str:
    if isinstance(value, list):
        value = ",".join(str(item) for item in value)
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = value.replace(" ", "") if isinstance(value, str) else None
    if text is None or not _DEVICES.fullmatch(text):
        raise ValueError(f'应为设备编号，例如 "0" 或 "0,1"，收到 {received(value)}')
    return text


def _processes(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_PROCESSES:
        raise ValueError(f"应为 1 到 {_MOST_PROCESSES} 的整数，收到 {received(value)}")
    return value
