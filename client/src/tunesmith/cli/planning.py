"""What the commands do that are asked before a training starts."""

import json as json_module
from collections.abc import Iterable

from google.protobuf.json_format import MessageToDict
from rich.table import Column, Table
from rich.text import Text

from tunesmith.cli import text
from tunesmith.cli.commands import Session, as_json
from tunesmith.cli.failures import TASK_FAILED, UsageProblem
from tunesmith.cli.wish import Wish
from tunesmith.task.v1 import quota_service_pb2, spec_pb2
from tunesmith.task.v1.parameter_service_pb2 import Parameter
from tunesmith.task.v1.quota_service_pb2 import Quota
from tunesmith.task.v1.spec_pb2 import FinetuneSpec
from tunesmith.trainer.v1.trainer_service_pb2 import BaseModel, EstimateResourcesResponse

ACTIONS = {
    "continue": quota_service_pb2.QUOTA_ACTION_CONTINUE_UNSAVED,
    "stop": quota_service_pb2.QUOTA_ACTION_STOP,
}
WHEN_SPENT = {
    quota_service_pb2.QUOTA_ACTION_CONTINUE_UNSAVED: "tasks go on and save no more checkpoints",
    quota_service_pb2.QUOTA_ACTION_STOP: "tasks save a last checkpoint and stop",
}


class PlanningSession(Session):
    """A session about what a training needs and what there is."""

    def estimate(self, wish: Wish) -> int:
        """Prints an estimate; the exit code says whether the training fits."""
        request = wish.request("estimate")
        spec = FinetuneSpec()
        if wish.template:
            spec.CopyFrom(self.client.templates.get(wish.template).spec)
        spec.MergeFrom(request.spec.finetune)
        found = self.client.estimate(spec)
        if self.json:
            print(as_json(found, indent=2))
        else:
            self._estimate(found)
        return 0 if found.fits else TASK_FAILED

    def environment(self) -> int:
        """Prints every check of the environment; the exit code."""
        found = self.client.environment()
        if self.json:
            print(as_json(found, indent=2))
            return 0 if found.ready else TASK_FAILED
        table = Table("", "check", "found", "what to do", box=None, pad_edge=False)
        for check in found.checks:
            mark = Text("ok", style="green") if check.ok else Text("no", style="red")
            table.add_row(mark, check.name, Text(text.harmless(check.found)), Text(text.harmless(check.advice)))
        self.console.print(table)
        self.console.print("ready to train" if found.ready else "not ready to train")
        return 0 if found.ready else TASK_FAILED

    def quota(self, user: str, allowance: int | None, when_spent: str | None) -> None:
        """Prints a quota, after setting it when that is asked for."""
        if allowance is None and when_spent:
            raise UsageProblem("--when-spent goes with --set")
        if allowance is not None and not user:
            raise UsageProblem("--set needs --user with the name of the user whose allowance it is")
        if allowance is None:
            found = self.client.quota(user)
        elif when_spent:
            found = self.client.set_quota(user, allowance, ACTIONS[when_spent])
        else:
            found = self.client.set_quota(user, allowance)
        if self.json:
            print(as_json(found))
            return
        self.facts(
            {
                "user": found.user,
                "checkpoints": quota_words(found),
                "when spent": WHEN_SPENT.get(found.exhausted_action, ""),
                "next month": text.moment(found.reset_time),
            }
        )

    def parameters(self, surface: str, objective: str, lang: str, advice: bool) -> None:
        """Prints every parameter of a surface."""
        found = self.client.parameters(surface, objective)
        if self.json:
            print(json_module.dumps([json_module.loads(as_json(item)) for item in found], ensure_ascii=False))
            return
        columns = ["name", "label", "category", "default", "values", *(["advice"] if advice else [])]
        table = Table(*columns, box=None, pad_edge=False)
        for item in found:
            label, words = (item.label_zh, item.advice_zh) if lang == "zh" else (item.label_en, item.advice_en)
            row: list[str | Text] = [item.name, Text(label), item.category, Text(_default(item)), _values(item)]
            table.add_row(*row, *([Text(words)] if advice else []))
        self.console.print(table)

    def base_models(self, modality: str, local: bool) -> None:
        """Prints base models."""
        found = [model for model in self.client.base_models(modality) if model.local or not local]
        self.listed(found, _model_table, "no models")

    def _estimate(self, found: EstimateResourcesResponse) -> None:
        memory = found.memory
        parts = {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimiser": memory.optimizer,
            "activations": memory.activations,
            "other": memory.overhead,
        }
        seconds = found.duration_seconds
        rows = {
            "memory": f"{text.size(found.memory_bytes)} of {text.size(found.memory_total_bytes)}",
            "of that": ", ".join(f"{name} {text.size(count)}" for name, count in parts.items()),
            "by method": "; ".join(
                f"{_method(item.method)} {text.size(item.memory_bytes)}{'' if item.fits else ' (does not fit)'}"
                for item in found.methods
            ),
            "disk": f"{text.size(found.disk_bytes)}, {text.size(found.disk_free_bytes)} free",
            "checkpoints": f"{found.checkpoints} saved, {found.checkpoints_kept} kept, "
            f"{text.size(found.checkpoint_bytes)} each",
            "quota": quota_words(found.quota) if found.HasField("quota") else "",
            "steps": f"{found.total_steps} on {found.rows} rows",
            "duration": f"{text.duration(seconds)} ({found.steps_per_second:.2f} steps/s)"
            if seconds
            else "unknown yet",
        }
        self.facts(rows)
        for note in found.notes:
            self.console.print(Text(f"  * {text.harmless(note)}", style="" if found.fits else "yellow"))
        self.console.print("it fits" if found.fits else Text("it does not fit", style="red"))


def quota_words(quota: Quota) -> str:
    """For example "7 of 100 used this month, 93 left"."""
    if quota.monthly_allowance < 0:
        return f"{quota.used} used this month, unlimited"
    low = ", nearly spent" if quota.low and quota.remaining else ", spent" if not quota.remaining else ""
    return f"{quota.used} of {quota.monthly_allowance} used this month, {quota.remaining} left{low}"


def _method(method: spec_pb2.Method.ValueType) -> str:
    return spec_pb2.Method.Name(method).removeprefix("METHOD_").lower()


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    if not parameter.HasField("default_value"):
        return ""
    value = MessageToDict(parameter.default_value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return json_module.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _values(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(parameter.choices)
    below = f"{'>' if parameter.minimum_excluded else '>='} {parameter.minimum:g}"
    above = f"{'<' if parameter.maximum_excluded else '<='} {parameter.maximum:g}"
    limits = [below] * parameter.HasField("minimum") + [above] * parameter.HasField("maximum")
    return f"{parameter.type} {', '.join(limits)}" if limits else parameter.type


def _model_table(found: Iterable[BaseModel]) -> Table:
    table = Table(Column("id", no_wrap=True), "family", "size", "LoRA needs", "here", "what", box=None, pad_edge=False)
    for model in found:
        table.add_row(
            Text(text.harmless(model.id)),
            model.family,
            model.parameters,
            f"{model.vram_gb:g} GB" if model.vram_gb else "",
            "yes" if model.local else "no",
            Text(text.harmless(model.description)),
        )
    return table
