"""Checks a whole evaluation: at submit, and again before it starts."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval_service import scores
from eval_service.scoring.embedding_files import read_pooling
from eval_service.stored import stored_problems
from eval_service.suite_checks import suite_problems
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache, DatasetFiles
from modelkit.errors import ModelkitError
from modelkit.paths import AllowedRoots
from servicekit.errors import Problem
from servicekit.objects import ObjectStore
from tunesmith.task.v1 import spec_pb2, task_service_pb2
from workerkit.datasets import DatasetChecks, reading_of
from workerkit.holding import holding
from workerkit.turns import InThread

TASK_PREFIX = "task:"
NO_BASE = "the base model of the task cannot be used any more"
PLAIN = "text"  # the format of rows that are learnt whole
TEST, VALIDATION = spec_pb2.EVALUATION_SPLIT_TEST, spec_pb2.EVALUATION_SPLIT_VALIDATION


@dataclass(slots=True)
class CheckedEvaluation:
    """What an evaluation stands for on this machine; everything is set that has no problem.

    model_dir is None for a base model that is another task's output.
    """

    problems: list[Problem] = field(default_factory=list)
    model_dir: Path | None = None
    dataset: DatasetFiles | None = None
    embedding_dir: Path | None = None

    def refuse(self, name: str, message: str) -> None:
        """Notes a problem of a field of the evaluation."""
        self.problems.append(Problem(f"evaluate.{name}", message))


class EvaluationChecks:
    """Checks evaluations against this machine and the object store. What is not async blocks; call it in a thread."""

    def __init__(
        self, roots: AllowedRoots, models: BaseModels, known_datasets: DatasetChecks, store: ObjectStore
    ) -> None:
        self._roots = roots
        self._models = models
        self._datasets = known_datasets
        self._store = store

    @property
    def cache(self) -> DataCache:
        """What was worked out from data."""
        return self._datasets.cache

    def holding(self, checked: CheckedEvaluation) -> AbstractContextManager[None]:
        """As workerkit.holding."""
        return holding(checked, self.cache, self._models)

    def may_write(self, directory: Path) -> bool:
        """Whether a directory is on this machine, allowed, and can be written to."""
        return directory.is_dir() and self._roots.contains(directory) and os.access(directory, os.W_OK | os.X_OK)

    async def at_submit(
        self, spec: spec_pb2.EvaluateSpec, source: task_service_pb2.TaskSource, in_thread: InThread, *, token: str
    ) -> list[Problem]:
        """Everything that is wrong with an evaluation that a user asks for. Raises what the object store raises."""
        checked = await in_thread(self.check, spec, source, token=token)
        return checked.problems + await stored_problems(self._store, spec, source)

    def check(
        self, spec: spec_pb2.EvaluateSpec, source: task_service_pb2.TaskSource, *, token: str = "", starts: bool = False
    ) -> CheckedEvaluation:
        """Everything that is wrong, all at once. Raises TunesmithError when what must be asked does not answer.

        token is that of a user who asks and may know of his own uploads alone; without it the service reads a dataset
        by its own right. With starts the evaluation begins now: a base model is converted that needs it.
        """
        checked = CheckedEvaluation()
        finetune = source.spec.finetune
        if not finetune.HasField("language_model"):
            checked.refuse("source_task_id", "only trainings of language models can be evaluated; name one")
            return checked
        objective = spec_pb2.Objective.Name(finetune.language_model.objective).removeprefix("OBJECTIVE_")
        objective = objective if objective in scores.MEASURABLE else "SUPERVISED"
        checked.problems += _score_problems(spec, objective)
        self._check_base_model(spec, finetune, checked, starts=starts, classifies=objective == "CLASSIFICATION")
        self._check_rows(spec, finetune, checked, token)
        self._check_embedding_model(spec, checked)
        for text in suite_problems(list(spec.suites), starts=starts):
            checked.refuse("suites", text)
        return checked

    def _check_base_model(
        self,
        spec: spec_pb2.EvaluateSpec,
        finetune: spec_pb2.FinetuneSpec,
        checked: CheckedEvaluation,
        *,
        starts: bool,
        classifies: bool,
    ) -> None:
        if classifies and spec.include_base_model:
            message = "a base model has no classes to tell, so it cannot be scored as a classifier; leave it out"
            checked.refuse("include_base_model", message)
        if finetune.base_model.startswith(TASK_PREFIX):
            return
        try:
            model = self._models.resolve(finetune.base_model, own_tokenizer=False)
            checked.model_dir = self._models.ready(model) if starts else model.directory
        except ModelkitError as error:
            for problem in error.problems:
                checked.refuse("source_task_id", f"{NO_BASE}: {problem.message}")
        except OSError as error:
            checked.refuse("source_task_id", f"{NO_BASE}: {error}")

    def _check_rows(
        self, spec: spec_pb2.EvaluateSpec, finetune: spec_pb2.FinetuneSpec, checked: CheckedEvaluation, token: str
    ) -> None:
        """The rows to score on: a dataset of its own, or what the training held out."""
        own = spec.HasField("dataset")
        dataset = spec.dataset if own else finetune.dataset
        name = f"dataset.{dataset.WhichOneof('source') or 'path'}" if own else "split"
        hint = "" if own else "the data of the task cannot be read any more; name a dataset: "
        reading = reading_of(dataset, finetune.language_model.objective)
        reading = replace(reading, labels=tuple(finetune.language_model.labels))
        try:
            files = self._datasets.find(dataset, self._roots, reading, where="evaluate.dataset", token=token)
            if own:
                known = self._datasets.check(files)
                for problem in known.problems:
                    if problem.reason != "ONE_LABEL":  # a sample need not have every class
                        checked.refuse(name, str(problem))
                checked.problems += _scores_of_replies(spec, known.format)
        except ModelkitError as error:
            for item in error.problems:
                checked.problems.append(Problem(item.field if own else f"evaluate.{name}", hint + item.message))
            return
        except OSError as error:
            checked.refuse(name, f"{hint}cannot be read: {error}")
            return
        checked.dataset = files
        if missing := _missing_split(spec, finetune, files):
            checked.refuse("split", missing)

    def _check_embedding_model(self, spec: spec_pb2.EvaluateSpec, checked: CheckedEvaluation) -> None:
        if not spec.embedding_model:
            return
        name = "evaluate.embedding_model"
        try:
            checked.embedding_dir = self._roots.resolve(spec.embedding_model, field=name)
            read_pooling(checked.embedding_dir, field=name)
        except ModelkitError as error:
            checked.problems += [Problem(item.field, item.message) for item in error.problems]


def _score_problems(spec: spec_pb2.EvaluateSpec, objective: str) -> Iterator[Problem]:
    fitting = scores.measurable(objective)
    for place, name in enumerate(spec.scores):
        if name not in scores.BY_NAME:
            yield Problem(f"evaluate.scores[{place}]", f"there is no score {name[:40]!r}; {_listed(fitting)}")
        elif name not in fitting:
            words = objective.lower()
            yield Problem(f"evaluate.scores[{place}]", f"{name} does not fit a {words} training; {_listed(fitting)}")
    chosen = [name for name in spec.scores or fitting if name in fitting]
    for name in sorted(spec.weights):
        if name not in scores.BY_NAME or name == "confusion":
            yield Problem(f"evaluate.weights[{name[:40]}]", f"there is no such score in the total; {_listed(fitting)}")
        elif spec.weights[name] > 0 and name not in chosen:
            text = f"{name} is not computed here, so it cannot weigh anything; choose it, or leave its weight out"
            yield Problem(f"evaluate.weights[{name}]", f"{text}; {_listed(fitting)}")
    if spec.weights and not scores.shares(chosen, dict(spec.weights)):
        yield Problem("evaluate.weights", "leave nothing to recommend by; give a score a weight above 0")
    if spec.HasField("min_samples") and spec.HasField("max_samples") and spec.min_samples > spec.max_samples:
        text = f"{spec.min_samples} is more than max_samples ({spec.max_samples}); make one of them fit"
        yield Problem("evaluate.min_samples", text)


def _scores_of_replies(spec: spec_pb2.EvaluateSpec, form: str) -> Iterator[Problem]:
    """Scores that compare replies, asked for or weighed, where the rows are plain texts and have none."""
    if form != PLAIN:
        return
    named = [(f"scores[{number}]", name) for number, name in enumerate(spec.scores)]
    weighed = [(f"weights[{name}]", name) for name in sorted(spec.weights) if spec.weights[name] > 0]
    for place, name in named + [item for item in weighed if item[1] not in spec.scores]:
        if name in scores.BY_NAME and scores.BY_NAME[name].needs == scores.ANSWERS:
            text = f"{name} compares replies, and the dataset has plain texts; leave it out, or name rows with replies"
            yield Problem(f"evaluate.{place}", text)
    if spec.weights.get("perplexity", 1.0) <= 0:
        text = "leave nothing to recommend by, as the dataset has plain texts; give perplexity a weight above 0"
        yield Problem("evaluate.weights", text)


def _listed(names: Sequence[str]) -> str:
    return f"those that fit are {', '.join(names)}"


def _missing_split(spec: spec_pb2.EvaluateSpec, finetune: spec_pb2.FinetuneSpec, files: DatasetFiles) -> str:
    """Why there are no rows of the split that is asked for; empty when there are."""
    own, learnt = spec.HasField("dataset"), finetune.language_model
    has = {
        TEST: files.test is not None or (not own and learnt.test_ratio > 0),
        VALIDATION: files.validation is not None or (not own and learnt.eval_ratio > 0),
    }
    if spec.split in has:
        if has[spec.split]:
            return ""
        word = "test" if spec.split == TEST else "validation"
        where = "the dataset has no such file" if own else "the task held none out"
        return f"there are no {word} rows: {where}; choose another split, or name a dataset"
    if own or any(has.values()):
        return ""
    return "the task held no rows out; name a dataset to score on, or train with an eval_ratio or test_ratio above 0"
