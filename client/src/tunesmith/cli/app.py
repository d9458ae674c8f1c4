"""Words and options of the tunesmith command. Commands import what they need when they run, so that help is quick."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tunesmith.cli.chat_words import GENERATION_PARAMETERS, chat
from tunesmith.cli.datasets_words import datasets
from tunesmith.cli.evaluations_words import EVALUATION_PARAMETERS, evaluate, evaluations
from tunesmith.cli.exports_words import export, exports
from tunesmith.cli.group import Root
from tunesmith.cli.options import (
    PARAMETERS,
    BaseModel,
    Data,
    DataDir,
    DatasetId,
    Json,
    Limit,
    Method,
    Objective,
    OutputDir,
    Settings,
    TaskId,
    TaskIds,
    TemplateId,
    Token,
    Url,
    Validation,
)
from tunesmith.cli.planning_words import environment, estimate, list_models, parameters, quota
from tunesmith.cli.templates_words import templates

app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
tasks = typer.Typer(no_args_is_help=True, help="List, watch and steer tasks.")
models = typer.Typer(no_args_is_help=True, help="List base models, make small ones to try things with.")
app.add_typer(tasks, name="tasks")
app.add_typer(models, name="models")
app.add_typer(datasets, name="datasets")
app.add_typer(templates, name="templates")
app.add_typer(evaluations, name="evaluations")
app.add_typer(exports, name="exports")
models.command("list")(list_models)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tunesmith {version('tunesmith')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Tunesmith fine-tunes models: start the platform, train, evaluate, talk to the result, export it."""


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="TUNESMITH_DATA_DIR", help="Where everything is kept. Default ~/.tunesmith.", show_default=False
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers that train, each one task at a time.")] = 1,
    allow_root: Annotated[
        list[Path] | None,
        typer.Option(help="Directory, beside the data directory, for models, datasets and outputs. Repeatable."),
    ] = None,
) -> None:
    """Start the whole platform on this machine; Ctrl-C stops it in order."""
    from tunesmith.cli.local import start_platform

    raise typer.Exit(start_platform(host, port, data_dir, workers, allow_root or []))


@app.command(epilog=f"Parameters for --set: {PARAMETERS}")
def train(
    base_model: BaseModel,
    dataset: Data = "",
    dataset_id: DatasetId = "",
    method: Method = None,
    objective: Objective = None,
    template: TemplateId = "",
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="Name of the task. Default <objective>_<date>_<time>.")] = None,
    output_dir: OutputDir = "",
    validation: Validation = "",
    description: Annotated[str, typer.Option(help="Free text.", show_default=False)] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until the end.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Fine-tune a language model. Exits with 1 when it was watched and did not complete."""
    from tunesmith.cli.commands import Session
    from tunesmith.cli.wish import Wish

    wish = Wish(base_model, dataset, dataset_id, method, objective, template, settings or [], output_dir, validation)
    with Session(url, token, data_dir, json=json) as session:
        task = session.train(wish, name, description)
        if watch:
            raise typer.Exit(session.watch(task.id))


app.command(epilog=f"Parameters for --set: {PARAMETERS}")(estimate)
app.command(epilog=f"Parameters for --set: {EVALUATION_PARAMETERS}, weight_NAME of a score")(evaluate)
app.command(epilog=f"Parameters for --set: {GENERATION_PARAMETERS}")(chat)
app.command()(export)
app.command()(environment)
app.command()(parameters)
app.command()(quota)


@app.command()
def events(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Id of one task. Default: all.")] = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Print what happens, live: to one task until it ends, or to all tasks until Ctrl-C."""
    from tunesmith.cli.events import follow

    follow(task, json=json, url=url, token=token, data_dir=data_dir)


@app.command("token")
def issue_token(
    user: Annotated[str, typer.Option(help="Whom the token stands for.", show_default=False)],
    role: Annotated[Literal["user", "admin"], typer.Option(help="An admin sees everybody's tasks.")] = "user",
    expires: Annotated[str, typer.Option(help="Lifetime, for example 12h, 30d.")] = "30d",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="TUNESMITH_DATA_DIR",
            help="Directory with the signing key. Default ~/.tunesmith.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Sign a token with the platform's key and print it."""
    from tunesmith.cli.local import sign_token

    typer.echo(sign_token(data_dir, user, role, expires))


@tasks.command("list")
def list_tasks(
    states: Annotated[list[str] | None, typer.Option("--state", help="Only this state. Repeatable.")] = None,
    kind: Annotated[
        Literal["finetune", "evaluate", "export"] | None, typer.Option(help="Only this kind of work.")
    ] = None,
    source: Annotated[
        str, typer.Option(metavar="TASK", help="Only evaluations and exports of this task.", show_default=False)
    ] = "",
    name: Annotated[str, typer.Option(help="Only names that contain this.", show_default=False)] = "",
    limit: Limit = 50,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List tasks, newest first."""
    from tunesmith.cli.commands import Session

    with Session(url, token, data_dir, json=json) as session:
        session.list_tasks(states or [], kind or "", source, name, limit)


@tasks.command()
def show(task: TaskId, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Show everything that is known of a task."""
    from tunesmith.cli.commands import Session

    with Session(url, token, data_dir, json=json) as session:
        session.show(task)


@tasks.command("watch")
def watch_task(
    task: TaskId, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """Show a task's progress until it ends. Exits with 1 when it did not complete."""
    from tunesmith.cli.commands import Session

    with Session(url, token, data_dir, json=json) as session:
        raise typer.Exit(session.watch(task))


@tasks.command()
def logs(
    task: TaskId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task ends.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Only the last so many lines; 0: all.")] = 0,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Print the log of a task."""
    from tunesmith.cli.commands import Session

    with Session(url, token, data_dir, json=json) as session:
        session.logs(task, follow, tail)


@tasks.command()
def stop(
    tasks: TaskIds,
    discard: Annotated[bool, typer.Option(help="Save no checkpoint first.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Stop tasks; each saves a checkpoint to resume from."""
    from tunesmith.cli.commands import Session

    with Session(url, token, data_dir, json=json) as session:
        for task in tasks:
            session.told(session.tasks.stop(task, discard=discard))


@tasks.command()
def resume(
    task: TaskId,
    step: Annotated[int, typer.Option(min=0, help="Checkpoint to start from; 0: the newest.")] = 0,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Start a stopped or failed task again from a checkpoint."""
    from tunesmith.cli.commands import Session

    with Session(url, token, data_dir, json=json) as session:
        session.told(session.tasks.resume(task, checkpoint_step=step))


@tasks.command()
def delete(
    tasks: TaskIds,
    force: Annotated[bool, typer.Option(help="Stop a running task first.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Delete tasks with their logs and checkpoints; finished models are kept."""
    from tunesmith.cli.commands import Session

    with Session(url, token, data_dir, json=json) as session:
        for task in tasks:
            session.delete(task, force)


@models.command()
def scratch(
    out_dir: Annotated[Path, typer.Argument(help="New directory for the model.", show_default=False)],
    corpus: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="Text that the tokenizer is trained on.", show_default=False),
    ],
    family: Annotated[
        str,
        typer.Option(
            help="Architecture and tokenizer: llama (3), llama2, mistral, qwen1.5, qwen2, qwen2.5, qwen3, glm, glm4, "
            "phi, phi3, gemma, gemma2 or gemma3."
        ),
    ] = "llama",
    hidden_size: Annotated[int, typer.Option(min=8, help="Width.")] = 256,
    layers: Annotated[int, typer.Option(min=1, help="Depth.")] = 4,
    vocab_size: Annotated[int, typer.Option(min=300, help="Entries of the tokenizer.")] = 4096,
) -> None:
    """Make a small untrained model in Hugging Face form, with a tokenizer and a chat template."""
    from tunesmith.cli.local import make_scratch_model

    make_scratch_model(out_dir, corpus, family, hidden_size, layers, vocab_size)
    typer.echo(str(out_dir.absolute()))
