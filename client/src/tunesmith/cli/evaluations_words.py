"""Words of `tunesmith evaluate` and `tunesmith evaluations`."""

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.options import DataDir, Json, Limit, TaskId, Token, Url, setting

EVALUATION_PARAMETERS = (
    "embedding_model, max_samples, max_tokens, min_p, min_samples, presence_penalty, repetition_penalty, sample_ratio, "
    "sampling_seed, scores, seed, split, stop, suites, temperature, top_k, top_p"
)

evaluations = typer.Typer(no_args_is_help=True, help="List and show evaluations, fetch their reports.")
Evaluation = Annotated[str, typer.Argument(metavar="EVALUATION", help="Id of the evaluation.", show_default=False)]


def evaluate(
    task: TaskId,
    checkpoints: Annotated[
        str, typer.Option(metavar="STEPS", help="Steps, for example 10,20. Default: all and the final model.")
    ] = "",
    base: Annotated[bool, typer.Option("--base", help="Score the untrained base model too.")] = False,
    dataset: Annotated[
        str, typer.Option(help="Samples: file, directory, address, or id of an upload. Default: rows held out.")
    ] = "",
    samples: Annotated[int | None, typer.Option(min=1, help="At most so many samples. Default 20.")] = None,
    settings: Annotated[list[str] | None, setting("max_tokens=64")] = None,
    name: Annotated[str | None, typer.Option(help="Name. Default evaluation_<date>_<time>.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until the end, and then the scores.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Score checkpoints of a task and recommend one. Exits with 1 when it was watched and did not complete."""
    from tunesmith.cli.evaluations import EvaluationSession

    with EvaluationSession(url, token, data_dir, json=json) as session:
        started = session.evaluate(
            task, checkpoints, settings or [], base=base, dataset=dataset, samples=samples, name=name
        )
        if watch:
            raise typer.Exit(session.watch_scores(started.id))


@evaluations.command("list")
def list_evaluations(
    limit: Limit = 50, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """List evaluations, newest first."""
    from tunesmith.cli.evaluations import EvaluationSession

    with EvaluationSession(url, token, data_dir, json=json) as session:
        session.list_evaluations(limit)


@evaluations.command()
def show(
    evaluation: Evaluation, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """Show the scores of an evaluation and what it recommends."""
    from tunesmith.cli.evaluations import EvaluationSession

    with EvaluationSession(url, token, data_dir, json=json) as session:
        session.show_evaluation(evaluation)


@evaluations.command()
def report(
    evaluation: Evaluation,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory that receives the files.")
    ] = Path(),
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Fetch the report of an evaluation: a page to read, a table and everything as JSON."""
    from tunesmith.cli.evaluations import EvaluationSession

    with EvaluationSession(url, token, data_dir, json=json) as session:
        session.report(evaluation, output)
