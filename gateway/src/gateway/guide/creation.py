"""A flat request of the training guide to a CreateTaskRequest; every problem is collected, by the caller's names."""

import hashlib
import re
import secrets
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from parameterkit import messages
from parameterkit.limits import limits
from parameterkit.reading import Reader
from parameterkit.table import BY_NAME
from servicekit.errors import Problem
from tunesmith.task.v1 import spec_pb2, task_service_pb2

NAME, DESCRIPTION, MODEL_TYPE, DATASET, BASE_MODEL = "name", "description", "model_type", "dataset_path", "base_model"
LANGUAGE_MODEL = "llm"
# Words of model_type, and the field of a FinetuneSpec that each stands for.
MODALITIES = {
    LANGUAGE_MODEL: "language_model",
    "image_classifier": "image_classifier",
    "object_detector": "object_detector",
    "text_to_image": "text_to_image",
}
# What else people write for a language model.
_SPELLINGS = dict.fromkeys(("language_model", "large_language_model", "causal_lm", "lm", "text"), "language_model")
# What a training on pictures has of its own, by the names of the guide.
SIZES = {"image_classifier": "image_size", "object_detector": "image_size", "text_to_image": "resolution"}
STAND_IN = "-"

_TEXTS = {NAME: 200, DESCRIPTION: 10_000}
_COMMON = ("training.", "devices.", "dataset.path", "base_model", "output_dir", "resume_from_checkpoint")
_UNSUITABLE = re.compile(r"[^A-Za-z0-9._-]+")


class Creation:
    """One request to train. request holds what could be understood; problems says what is wrong.

    surface is the one whose defaults and ranges hold (parameterkit.surfaces); texts says that the values are those of a
    form.
    """

    def __init__(
        self, values: Mapping[str, Any], surface: str, modality: str = "language_model", *, texts: bool = False
    ) -> None:
        self.request = task_service_pb2.CreateTaskRequest(labels={"surface": surface})
        self.problems: list[Problem] = []
        self._values = values
        self._modality = modality
        reader = Reader(surface, spec=self._spec)
        size = SIZES.get(modality, "")
        parameters = {name: value for name, value in values.items() if name not in (*_TEXTS, MODEL_TYPE, size)}
        reader.take(parameters, names=names_of_modality(modality), texts=texts)
        self._require_kind(values.get(MODEL_TYPE))
        self._reading = reader.finish()
        self.problems += [Problem(*problem) for problem in self._reading.problems]
        self.request.default_fields.extend(self._reading.default_fields)
        for name, longest in _TEXTS.items():
            setattr(self.request, name, self._text(name, longest))
        self._require(BASE_MODEL, bool(self._spec.base_model))
        self._require(DATASET, self._spec.HasField("dataset"))
        self._named = bool(self.request.name)
        if not self._named:
            self.request.name = _task_name(self._spec.base_model, f"{datetime.now(UTC):%Y%m%d_%H%M%S}")
        if size:
            self._change_modality(size)

    @property
    def _spec(self) -> spec_pb2.FinetuneSpec:
        return self.request.spec.finetune

    def identify(self, key: str) -> None:
        """Makes a repeated creation harmless: one with the same key, or without a key one that the channel repeats.

        With a key a task without a name is named after it, because the time is another one when it is repeated.
        """
        self.request.request_id = key or secrets.token_hex(16)
        if key and not self._named:
            digest = hashlib.sha256(key.encode()).hexdigest()
            self.request.name = _task_name(self._spec.base_model, digest[:8])

    def only_check(self) -> task_service_pb2.CreateTaskRequest:
        """The request as one that creates nothing, with which services find what else is wrong.

        What is missing gets a stand-in, without which they would look no further; its field has a problem already.
        """
        check = task_service_pb2.CreateTaskRequest()
        check.CopyFrom(self.request)
        check.validate_only = True
        spec = check.spec.finetune
        spec.base_model = spec.base_model or STAND_IN
        if not spec.HasField("dataset"):
            spec.dataset.path = STAND_IN
        return check

    def service_problems(self, problems: Collection[Problem]) -> list[Problem]:
        """What a service found, by the caller's names, without what was found here already."""
        found = [Problem(self.name_of(problem.field), problem.message) for problem in problems]
        known = {problem.field for problem in self.problems}
        return [problem for problem in found if problem.field not in known]

    def name_of(self, path: str) -> str:
        """The caller's name of a field path such as "finetune.training.learning_rate"."""
        rest = path.removeprefix("spec.").removeprefix("finetune.")
        if rest.split(".")[0] == "dataset" and rest != BY_NAME["eval_file"].path:
            return self._reading.names.get("dataset.path", DATASET)
        return self._reading.name_of(path)

    def _text(self, name: str, longest: int) -> str:
        value = self._values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self._refuse(name, messages.TEXT, received=messages.Received(value))
        elif len(value) > longest:
            self._refuse(name, messages.LENGTH, most=longest, count=len(value))
        elif "\0" in value:
            self._refuse(name, messages.CHARACTERS, received=messages.Received(value.replace("\0", "\\0")))
        else:
            return value
        return ""

    def _require_kind(self, given: Any) -> None:
        """A caller that says what kind of model it means must mean the one that its route trains."""
        if given not in (None, "") and modality_of(given) != self._modality:
            word = next(word for word, modality in MODALITIES.items() if modality == self._modality)
            self._refuse(MODEL_TYPE, messages.CHOICE, choices=(word,), received=messages.Received(given))

    def _require(self, name: str, given: bool) -> None:
        if not given and all(problem.field not in BY_NAME[name].names for problem in self.problems):
            self._refuse(name, messages.REQUIRED)

    def _refuse(self, name: str, text: messages.Text, **values: Any) -> None:
        self.problems.append(Problem(name, text.say(messages.ENGLISH, **values)))

    def _change_modality(self, size: str) -> None:
        """From a language model, as which every request is read, to a model of pictures."""
        self._spec.ClearField("language_model")
        part: Any = getattr(self._spec, self._modality)
        part.SetInParent()
        paths = [path for path in self.request.default_fields if "language_model." not in path]
        del self.request.default_fields[:]
        self.request.default_fields.extend(paths)
        value = self._values.get(size)
        pixels = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        if value in (None, ""):
            return
        bounds = limits(_field(part, size))
        if isinstance(pixels, bool) or not isinstance(pixels, int):
            self._refuse(size, messages.WHOLE, received=messages.Received(value))
        elif not bounds.admit(pixels):
            self._refuse(size, messages.RANGE, interval=bounds.interval(), received=messages.Received(value))
        else:
            setattr(part, size, pixels)


def modality_of(given: Any) -> str:
    """The field of a FinetuneSpec that a model_type stands for, in any case; empty when it stands for none."""
    word = given.strip().lower().replace("-", "_") if isinstance(given, str) else ""
    return MODALITIES.get(word) or _SPELLINGS.get(word, "")


def names_of_modality(modality: str) -> Collection[str]:
    """The parameters that a kind of training takes, by all their names."""
    if modality == "language_model":
        return BY_NAME
    return [name for name, row in BY_NAME.items() if row.path.startswith(_COMMON)]


def _field(message: Any, name: str) -> FieldDescriptor:
    field: FieldDescriptor = message.DESCRIPTOR.fields_by_name[name]
    return field


def _task_name(base_model: str, end: str) -> str:
    """A name for a task whose caller gave none."""
    word = _UNSUITABLE.sub("-", base_model.rstrip("/").rpartition("/")[2])[:160] or "training"
    return f"{word}_{end}"
