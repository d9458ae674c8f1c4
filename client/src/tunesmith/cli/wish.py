"""What somebody wants to train, as the options of `train` and `estimate` say it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tunesmith.cli.failures import UsageProblem
from tunesmith.client import InvalidArgument, finetune_request
from tunesmith.task.v1.spec_pb2 import FinetuneSpec
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest

T = TypeVar("T")

OBJECTIVES = {"sft": "supervised", "pretrain": "pretraining", "classification": "classification"}


@dataclass(frozen=True, slots=True)
class Wish:
    """The options; settings are NAME=VALUE pairs."""

    base_model: str
    dataset: str = ""
    dataset_id: str = ""
    method: str | None = None
    objective: str | None = None
    template: str = ""
    settings: list[str] = field(default_factory=list)
    output_dir: str = ""
    validation: str = ""

    @property
    def prefix(self) -> str:
        """Begin of a task's name that nobody gave."""
        return self.objective or "sft"

    def request(self, name: str) -> CreateTaskRequest:
        """The request for a task of this name. Raises UsageProblem with every mistake in the options."""
        problems: list[str] = []
        if bool(self.dataset) == bool(self.dataset_id):
            problems.append("give the data once: --dataset with a path or address, or --dataset-id with an upload's id")
        parameters = self._parameters(problems)
        request = checked(
            problems,
            lambda: finetune_request(
                name,
                self.base_model,
                self.dataset or self.dataset_id,
                parameters,
                output_dir=self.output_dir,
                validation=self.validation,
                template_id=self.template,
            ),
        )
        if self.dataset_id:
            request.spec.finetune.dataset.dataset_id = self.dataset_id
        return request

    def parameters_only(self) -> FinetuneSpec:
        """What a template keeps. Raises UsageProblem with every mistake in the options."""
        problems: list[str] = []
        parameters = self._parameters(problems)
        request = checked(problems, lambda: finetune_request("template", self.base_model, "", parameters))
        spec = request.spec.finetune
        spec.dataset.ClearField("path")
        return spec

    def _parameters(self, problems: list[str]) -> dict[str, str]:
        """The parameters by name; adds what is no name=value and what is said twice in two ways."""
        settings = named_settings(self.settings, problems)
        objective = OBJECTIVES[self.objective] if self.objective else None
        for option, word in (("method", self.method), ("objective", objective)):
            if word is not None and settings.setdefault(option, word).lower() != word:
                problems.append(f"--{option} {word} and --set {option}={settings[option]} disagree")
        return settings


def named_settings(pairs: Iterable[str], problems: list[str]) -> dict[str, str]:
    """The values of NAME=VALUE pairs; adds what is no such pair and what is said twice in two ways."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            problems.append(f"--set {pair}: write --set name=value")
            continue
        if name in settings and settings[name] != value:
            problems.append(f"--set {name}: given twice, as {settings[name]} and {value}")
        settings[name.strip()] = value.strip()
    return settings


def checked(problems: list[str], build: Callable[[], T]) -> T:
    """What build makes of settings. Raises UsageProblem with the problems so far and those that build finds."""
    try:
        built = build()
    except InvalidArgument as error:
        found = error.problems or (error.message,)
        raise UsageProblem("\n".join([*problems, *(f"--set {problem}" for problem in found)])) from None
    if problems:
        raise UsageProblem("\n".join(problems))
    return built


def local_path(text: str) -> str:
    """A path that exists here made absolute; anything else as it is."""
    path = Path(text).expanduser()
    return str(path.absolute()) if text and path.exists() else text
