"""What the evaluation commands do."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from tunesmith.cli import text
from tunesmith.cli.commands import Session, as_json
from tunesmith.cli.pages import collect
from tunesmith.cli.results import result_facts, result_table, tell_fetched
from tunesmith.cli.wish import checked, named_settings
from tunesmith.client import evaluation_request
from tunesmith.client.evaluation import REPORTS
from tunesmith.eval.v1.eval_service_pb2 import CheckpointScores, Evaluation, ListEvaluationsRequest, ScoreValue
from tunesmith.task.v1.task_pb2 import Task


class EvaluationSession(Session):
    """A session about evaluations."""

    def evaluate(
        self,
        task_id: str,
        checkpoints: str,
        settings: list[str],
        *,
        base: bool,
        dataset: str,
        samples: int | None,
        name: str | None,
    ) -> Task:
        """Starts an evaluation and says so. Raises UsageProblem with every mistake in the options."""
        problems: list[str] = []
        parameters = named_settings(settings, problems)
        steps = _steps(checkpoints, problems)
        if samples is not None and parameters.setdefault("max_samples", str(samples)) != str(samples):
            problems.append(f"--samples {samples} and --set max_samples={parameters['max_samples']} disagree")
        name = name or text.dated("evaluation")
        request = checked(
            problems,
            lambda: evaluation_request(name, task_id, steps, parameters, base_model=base, dataset=dataset),
        )
        return self.create(request)

    def watch_scores(self, task_id: str) -> int:
        """Shows an evaluation until it ends, and its scores; the exit code."""
        code = self.watch(task_id)
        if code == 0:
            self.show_evaluation(task_id, indent=None)
        return code

    def list_evaluations(self, limit: int) -> None:
        """Prints evaluations, newest first."""

        def page(size: int, token: str) -> tuple[Sequence[Evaluation], str]:
            answer = self.client.evaluations.list_page(ListEvaluationsRequest(page_size=size, page_token=token))
            return answer.evaluations, answer.next_page_token

        self.listed(collect(page, limit), _evaluation_table, "no evaluations")

    def show_evaluation(self, task_id: str, indent: int | None = 2) -> None:
        """Prints the scores of an evaluation and what it recommends, as JSON on one line without an indent."""
        found = self.client.evaluations.get(task_id)
        if self.json:
            print(as_json(found, indent))
            return
        self.facts(result_facts(found, {"samples": str(found.samples or "")}))
        if found.checkpoints:
            self.console.print(_score_table(found))
        if found.recommendation.text:
            self.console.print(Text(text.harmless(found.recommendation.text), style="bold"))

    def report(self, task_id: str, directory: Path) -> None:
        """Fetches every file of a report and says where each lies."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in REPORTS:
            path = self.client.evaluations.download(task_id, name, directory)
            tell_fetched(name, path, json=self.json)


def _steps(words: str, problems: list[str]) -> list[int]:
    steps = [word.strip() for word in words.split(",") if word.strip()]
    wrong = [word for word in steps if not (word.isascii() and word.isdigit() and int(word) > 0)]
    problems += [f"--checkpoints {word}: takes steps, for example 10,20" for word in wrong]
    return [] if wrong else [int(word) for word in steps]


def _evaluation_table(found: list[Evaluation]) -> Table:
    return result_table(found, {"recommended": lambda item: str(item.recommended_step or "")})


def _score_table(found: Evaluation) -> Table:
    """One row for each checkpoint, the recommended one in bold; intervals hold 95 % of what other samples would say."""
    names = list(dict.fromkeys(value.name for item in found.checkpoints for value in item.values))
    table = Table("checkpoint", "total", *(text.harmless(name) for name in names), box=None, pad_edge=False)
    for item in found.checkpoints:
        values = {value.name: value for value in item.values}
        recommended = item.step == found.recommended_step and not item.base_model and found.recommended_step > 0
        cells = [_score(values[name]) if name in values else "" for name in names]
        table.add_row(_checkpoint(item), _total(item), *cells, style="bold" if recommended else "")
    return table


def _checkpoint(item: CheckpointScores) -> str:
    return "base model" if item.base_model else str(item.step)


def _total(item: CheckpointScores) -> str:
    interval = f" ({item.total_low:.3f}-{item.total_high:.3f})" if item.total_low != item.total_high else ""
    return f"{item.total:.3f}{interval}"


def _score(value: ScoreValue) -> str:
    interval = f" ({text.number(value.low)}-{text.number(value.high)})" if value.low != value.high else ""
    return text.number(value.value) + interval
