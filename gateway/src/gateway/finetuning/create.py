"""The body of createTask to a CreateTaskRequest; every problem is collected, under the names that the caller used."""

import json
from collections.abc import Mapping
from typing import Any

from gateway.finetuning.arguments import (
    ARGUMENTS,
    CUDA_DEVICES,
    DEVICE_NAMES,
    GPU_CONFIG,
    KNOWN_NAMES,
    SURFACE,
    TRAINING_ARGS,
)
from gateway.finetuning.command import COMMAND, arguments_of
from parameterkit.messages import CHINESE, near, received
from parameterkit.reading import Reader, renamed
from parameterkit.values import name_dataset
from servicekit.errors import InvalidArgument, Problem
from tunesmith.task.v1 import task_service_pb2

NAME, DESCRIPTION, BASE_MODEL, DATASET, OUTPUT = "name", "description", "baseModel", "datasetPath", "outputPath"
_TEXTS = {NAME: 200, DESCRIPTION: 10_000, BASE_MODEL: 1024, DATASET: 4096, OUTPUT: 4096}
_REQUIRED = (NAME, BASE_MODEL, DATASET)
_TAKEN = (*_TEXTS, TRAINING_ARGS, GPU_CONFIG, COMMAND)
# What the platform's own answers carry beside that; a caller that sends a whole task back means no harm.
_IGNORED = (
    *("ID", "CreatedAt", "UpdatedAt", "DeletedAt", "userID", "status", "progress", "logPath", "errorMessage"),
    *("startedAt", "finishedAt", "pid", "metrics"),
)

# A stop on this surface is documented to leave ten seconds for saving.
SURFACE_LABELS = {"surface": SURFACE, "stop_grace_seconds": "10"}
LABEL_PREFIX = "finetuning."
LONGEST_LABEL = 4096
STAND_IN = "-"

_FIELDS = {
    "base_model": BASE_MODEL,
    "output_dir": OUTPUT,
    "devices": f"{GPU_CONFIG}.{CUDA_DEVICES}",
    "dataset": DATASET,
    **{argument.path: f"{TRAINING_ARGS}.{argument.name}" for argument in ARGUMENTS if not argument.switch},
}


def read_document(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. NaN and infinities are let through, so that their field can be named."""
    try:
        document = _loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"请求体不是有效的 JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"请求体应为 JSON 对象，收到 {received(document, CHINESE)}")
    return document


class Creation:
    """One request to create a task. request holds what could be understood; problems says what is wrong."""

    def __init__(self, document: Mapping[str, Any], command_allowed: bool) -> None:
        self.request = task_service_pb2.CreateTaskRequest(labels=SURFACE_LABELS)
        self.problems: list[Problem] = []
        self._document = document
        texts = {name: self._text(name, longest) for name, longest in _TEXTS.items()}
        self.request.name = texts[NAME]
        self.request.description = texts[DESCRIPTION]
        spec = self.request.spec.finetune
        spec.base_model = texts[BASE_MODEL]
        spec.output_dir = texts[OUTPUT]
        name_dataset(spec.dataset, texts[DATASET])
        reader = Reader(SURFACE, CHINESE, spec)
        reader.take(self._object(TRAINING_ARGS), TRAINING_ARGS, names=KNOWN_NAMES)
        reader.take(self._object(GPU_CONFIG), GPU_CONFIG, names=DEVICE_NAMES)
        reader.take(self._command(command_allowed), COMMAND, names=(*KNOWN_NAMES, *DEVICE_NAMES))
        reading = reader.finish()
        self.problems += [Problem(*problem) for problem in reading.problems]
        self.request.default_fields.extend(reading.default_fields)
        self._names = reading.names
        self._unknown()

    def only_check(self) -> None:
        """Makes the request one that creates nothing, so that the services find what else is wrong.

        What is missing gets a stand-in, without which they would look no further; its field has a problem already.
        """
        self.request.validate_only = True
        spec = self.request.spec.finetune
        self.request.name = self.request.name or STAND_IN
        spec.base_model = spec.base_model or STAND_IN
        if not spec.HasField("dataset"):
            spec.dataset.path = STAND_IN

    def service_problems(self, problems: tuple[Problem, ...]) -> list[Problem]:
        """What a service found, under the caller's names, without what was found here already."""
        found = [Problem(caller_name(problem.field, self._names), problem.message) for problem in problems]
        known = {problem.field for problem in self.problems}
        return [problem for problem in found if problem.field not in known]

    def _problem(self, field: str, message: str) -> None:
        self.problems.append(Problem(field, message))

    def _text(self, name: str, longest: int) -> str:
        value = self._document.get(name)
        if value is None or value == "":
            if name in _REQUIRED:
                self._problem(name, "必填")
            return ""
        if not isinstance(value, str):
            self._problem(name, f"应为字符串，收到 {received(value, CHINESE)}")
        elif name in _REQUIRED and not value.strip():
            self._problem(name, "必填")
        elif len(value) > longest:
            self._problem(name, f"最多 {longest} 个字符，收到 {len(value)} 个")
        elif "\0" in value:
            self._problem(name, "含有无法保存的字符")
        else:
            return value
        return ""

    def _object(self, name: str) -> dict[str, Any]:
        """An object, which may also come as the JSON text that the platform's answers have."""
        value = self._document.get(name)
        if isinstance(value, str):
            value = _from_text(value)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._problem(name, f"应为 JSON 对象，收到 {received(value, CHINESE)}")
            return {}
        self._keep(name, json.dumps(value, ensure_ascii=False))
        return value

    def _command(self, allowed: bool) -> dict[str, Any]:
        value = self._document.get(COMMAND)
        if value in (None, "", []):
            return {}
        if not allowed:
            message = "本部署不接受自定义命令；请用 trainingArgs 设置参数 (TUNESMITH_FINETUNING_COMMAND=true 可开启)"
            self._problem(COMMAND, message)
            return {}
        try:
            shown, arguments = arguments_of(value)
        except ValueError as error:
            self._problem(COMMAND, str(error))
            return {}
        self._keep(COMMAND, shown)
        return arguments

    def _keep(self, name: str, text: str) -> None:
        """Keeps what the caller sent with the task, to be shown again."""
        if len(text) > LONGEST_LABEL:
            self._problem(name, f"内容过长，最多 {LONGEST_LABEL} 个字符")
        elif "\0" in text:
            self._problem(name, "含有无法保存的字符")
        else:
            self.request.labels[LABEL_PREFIX + name] = text

    def _unknown(self) -> None:
        for name in self._document:
            if name not in _TAKEN and name not in _IGNORED:
                self._problem(name, f"未知字段{near(name, _TAKEN, CHINESE)}")


def caller_name(path: str, names: Mapping[str, str] | None = None) -> str:
    """The name on this surface of a field path such as spec.finetune.training.learning_rate.

    names are those that a caller used, by path, where they are known.
    """
    return renamed(path, {**_FIELDS, **(names or {})})


def _from_text(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return _loads(text)
    except (ValueError, RecursionError):
        return text


def _loads(text: bytes | str) -> Any:
    """JSON, NaN and infinities included. Raises ValueError, also for halves of surrogate pairs, which are no text."""
    document = json.loads(text)
    json.dumps(document, ensure_ascii=False).encode()
    return document
