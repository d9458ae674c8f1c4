"""The command of a task: shown for each, and read as a list of arguments where a deployment lets callers send one.

Nothing that a caller sends is run, by a shell or otherwise: the options of a command set what trainingArgs sets.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from gateway.finetuning.arguments import DEFAULTS
from parameterkit import BY_NAME
from parameterkit.values import dataset_name
from tunesmith.task.v1 import spec_pb2, task_pb2

COMMAND = "command"
_METHODS = {spec_pb2.METHOD_FULL: "full", spec_pb2.METHOD_LORA: "lora", spec_pb2.METHOD_QLORA: "qlora"}
_PREFIXES = {"lora": "lora_", "quantization": "quantization_"}
_SURFACE_PATHS = {f"finetune.{BY_NAME[name].path}" for name in DEFAULTS}
_OPTION = re.compile(r"--(?P<name>[A-Za-z0-9_-]+)(?:=(?P<value>.*))?", re.DOTALL)


def arguments_of(command: Any) -> tuple[str, dict[str, Any]]:
    """A command as one line and the parameters that its options set. Raises ValueError, in Chinese."""
    if isinstance(command, str):
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"无法解析: {error}") from None
    elif isinstance(command, list) and all(isinstance(word, str) for word in command):
        words = command
    else:
        raise ValueError("应为字符串或字符串数组")
    arguments: dict[str, Any] = {}
    for name, value in _options(words):
        if arguments.setdefault(name, value) != value:
            raise ValueError(f"--{name} 给出了两个不同的值")
    return shlex.join(words), arguments


def _options(words: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Options after the program's own words: --name value, --name=value, --name, --set name=value."""
    waiting = ""
    for word in words:
        option = _OPTION.fullmatch(word)
        if option is None:
            if waiting:
                yield _pair(waiting, word)
            waiting = ""
            continue
        if waiting:
            yield waiting, True
        name = option["name"].replace("-", "_")
        waiting = name if option["value"] is None else ""
        if option["value"] is not None:
            yield _pair(name, option["value"])
    if waiting:
        yield waiting, True


def _pair(name: str, text: str) -> tuple[str, Any]:
    if name == "set" and "=" in text:
        name, _, text = text.partition("=")
    try:
        return name, json.loads(text)
    except json.JSONDecodeError:
        return name, text


def equivalent(task: task_pb2.Task) -> str:
    """The command that would start a fine-tuning task again."""
    spec = task.spec.finetune
    words = ["tunesmith", "train", "--name", task.name, "--base-model", spec.base_model]
    words += ["--dataset", dataset_name(spec.dataset)]
    if spec.output_dir:
        words += ["--output-dir", spec.output_dir]
    method = _METHODS.get(spec.language_model.method)
    if method:
        words += ["--method", method]
    if spec.devices.cuda_visible_devices:
        words += ["--set", f"cuda_visible_devices={spec.devices.cuda_visible_devices}"]
    for part, path in ((spec.training, "finetune.training"), (spec.language_model, "finetune.language_model")):
        words += _settings(part, path, "", task)
    return shlex.join(words)


def _settings(message: Message, path: str, prefix: str, task: task_pb2.Task) -> Iterator[str]:
    for field, value in message.ListFields():
        where = f"{path}.{field.name}"
        if isinstance(value, Message):
            yield from _settings(value, where, _PREFIXES.get(field.name, ""), task)
            continue
        chosen = task.parameter_sources.get(where) != task_pb2.PARAMETER_SOURCE_DEFAULT or where in _SURFACE_PATHS
        if chosen and field.name != "method":
            yield from ("--set", f"{prefix}{field.name}={_shown(field, value)}")


def _shown(field: Any, value: Any) -> str:
    if field.is_repeated:
        return ",".join(value)
    if field.enum_type is not None:
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        return str(field.enum_type.values_by_number[value].name.removeprefix(prefix).lower())
    return str(value).lower() if isinstance(value, bool) else f"{value}"
