"""Flat parameters under any of their names, as the surfaces get them, to a FinetuneSpec.

    reading = read({"epochs": 3, "use_4bit": True}, "llm_finetuning")
    if reading.problems: ...  # all of them, under the caller's names
    request.spec.finetune.CopyFrom(reading.spec)
    request.default_fields.extend(reading.default_fields)

A surface that gets its parameters in several parts uses a Reader: take() each part, then finish(). A new surface needs
an entry in parameterkit.surfaces.SURFACES and nothing here. What services find wrong later comes with field paths;
Reading.name_of turns them back into the caller's names.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from parameterkit import messages, rules
from parameterkit.messages import ENGLISH, Problem, Refused, Text
from parameterkit.methods import Given, Switches
from parameterkit.surfaces import NATIVE, SURFACES, defaults, ranges
from parameterkit.table import BY_NAME, BY_PATH
from parameterkit.values import assign, clear, from_form, parse
from tunesmith.task.v1 import spec_pb2

_EVALUATE = "eval_strategy"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was understood. default_fields are paths that the surface filled in, as CreateTaskRequest takes them."""

    spec: spec_pb2.FinetuneSpec
    default_fields: list[str]
    problems: list[Problem]
    names: Mapping[str, str]

    def name_of(self, path: str, where: str = "") -> str:
        """The caller's name of a field path such as "spec.finetune.training.learning_rate".

        What the caller did not give is called by its name in the table, below where; other paths stay as they are.
        """
        table = {prefix: f"{where}.{row.name}" if where else row.name for prefix, row in BY_PATH.items()}
        return renamed(path, {**table, **self.names})


class Reader:
    """Collects the parameters of one request on a surface; language is "en" or "zh"."""

    def __init__(
        self, surface: str = NATIVE, language: str = ENGLISH, spec: spec_pb2.FinetuneSpec | None = None
    ) -> None:
        self._surface = SURFACES[surface]
        self._surface_name = surface
        self._ranges = ranges(surface)
        self._language = language
        self._spec = spec_pb2.FinetuneSpec() if spec is None else spec
        self._given: dict[str, Given] = {}
        self._names: dict[str, str] = {}
        self._problems: list[Problem] = []
        self._default_fields: list[str] = []

    def take(
        self, values: Mapping[str, Any], where: str = "", *, names: Collection[str] = BY_NAME, texts: bool = False
    ) -> None:
        """Takes values by any of their names, of which names are known here; null counts as not given.

        where is put in front of names in problems. texts: the values are those of a form, texts or lists of them.
        """
        for name, value in values.items():
            path = f"{where}.{name}" if where else name
            if name in names:
                self._take(name, path, from_form(BY_NAME[name], value) if texts else value)
            else:
                self._refuse(path, messages.UNKNOWN, near=messages.near(name, names, self._language))

    def finish(self) -> Reading:
        """Fills the spec: what was given, what follows from it, then the surface's defaults."""
        objective = self._given["objective"].value if "objective" in self._given else ""
        fill = self._defaults(objective)
        method = Switches(self._given, self._report).resolve(fill)
        scheduler = self._given.get("lr_scheduler_type", Given("", fill.get("lr_scheduler_type", ""))).value
        self._spec.language_model.SetInParent()
        for name, given in self._given.items():
            row = BY_NAME[name]
            if not row.switch and (not row.methods or method in row.methods) and given.value not in ("", None):
                assign(self._spec, row, given.value)
        self._evaluate_when_asked()
        for name, value in fill.items():
            if self._needs(name) and rules.applies(name, method, str(scheduler)):
                assign(self._spec, BY_NAME[name], parse(BY_NAME[name], value, self._ranges[name]))
                self._default_fields.append(f"finetune.{BY_NAME[name].path}")
        self._names |= {BY_NAME[name].path: given.name for name, given in self._given.items()}
        reading = Reading(self._spec, self._default_fields, self._problems, self._names)
        self._check_together(reading)
        return reading

    def _defaults(self, objective: str) -> Mapping[str, Any]:
        own = defaults(self._surface_name, objective)
        said = {**own, **{name: given.value for name, given in self._given.items()}}
        return {**own, **{name: said[other] for name, other in self._surface.derived.items()}}

    def _take(self, name: str, path: str, value: Any) -> None:
        row = BY_NAME[name]
        if value is None or (value == "" and row.type in ("path", "text")):
            return
        self._names.setdefault(row.path, path)
        try:
            parsed = parse(row, value, self._ranges[row.name])
        except Refused as error:
            self._problems.append(Problem(path, error.say(self._language)))
            return
        earlier = self._given.setdefault(row.name, Given(path, parsed))
        if earlier.value != parsed:
            self._refuse(path, messages.SAME, other=earlier.name)

    def _needs(self, name: str) -> bool:
        other = rules.SHADOWED_BY.get(name)
        shadowed = other in self._given and self._given[other].value is not False
        return name not in self._given and not shadowed and not (name == _EVALUATE and self._evaluates())

    def _evaluates(self) -> bool:
        """Whether what was given means evaluations, without saying when."""
        asking = (self._given[name].value for name in self._surface.evaluates_with if name in self._given)
        return _EVALUATE not in self._given and any(asking)

    def _evaluate_when_asked(self) -> None:
        if self._evaluates():
            assign(self._spec, BY_NAME[_EVALUATE], "steps")

    def _check_together(self, reading: Reading) -> None:
        """Parameters that do not go together; one of them is taken out, so that services find what else is wrong."""
        for breach in list(rules.breaches(reading.spec)):
            problem = breach.problem(reading.name_of, self._language)
            clear(reading.spec, breach.path)
            if all(problem.field != known.field for known in self._problems):
                self._problems.append(problem)

    def _report(self, parameter: str, text: Text, **values: Any) -> None:
        self._refuse(self._given[parameter].name, text, **values)

    def _refuse(self, path: str, text: Text, **values: Any) -> None:
        self._problems.append(Problem(path, text.say(self._language, **values)))


def read(values: Mapping[str, Any], surface: str = NATIVE, language: str = ENGLISH, *, texts: bool = False) -> Reading:
    """Reads the parameters of a request. texts: the values are those of a form, all of them texts."""
    reader = Reader(surface, language)
    reader.take(values, texts=texts)
    return reader.finish()


def renamed(path: str, names: Mapping[str, str]) -> str:
    """The name that a mapping has for a path such as "spec.finetune.training.seed", or for what it lies in."""
    rest = path.removeprefix("spec.").removeprefix("finetune.")
    parts = [part.partition("[")[0] for part in rest.split(".")]
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((names[prefix] for prefix in prefixes if prefix in names), rest)
