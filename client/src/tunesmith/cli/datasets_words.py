"""Words of `tunesmith datasets`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tunesmith.cli.options import DataDir, Json, Token, Url

datasets = typer.Typer(no_args_is_help=True, help="Upload, list and check training data.")

Id = Annotated[str, typer.Argument(metavar="DATASET", help="Id of the dataset.", show_default=False)]
Ids = Annotated[list[str], typer.Argument(metavar="DATASET...", help="Ids of the datasets.", show_default=False)]
Source = Annotated[
    str, typer.Argument(metavar="DATA", help="File, directory, address, or id of an upload.", show_default=False)
]
Validation = Annotated[str, typer.Option(help="File of the validation split.", show_default=False)]


@datasets.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV, Parquet, text, ZIP or TAR.")],
    name: Annotated[str, typer.Option(help="Name. Default: the file's.", show_default=False)] = "",
    kind: Annotated[str, typer.Option("--type", help="Kind of data. Default llm.", show_default=False)] = "",
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Upload a file as a dataset; its id is printed. The same name again makes the next version."""
    from tunesmith.cli.datasets import DataSession

    with DataSession(url, token, data_dir, json=json) as session:
        raise typer.Exit(session.upload(file, name, kind))


@datasets.command("list")
def list_datasets(
    name: Annotated[str, typer.Option(help="Only versions of this name.", show_default=False)] = "",
    kind: Annotated[str, typer.Option("--type", help="Only this kind of data.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List uploaded datasets, newest first."""
    from tunesmith.cli.datasets import DataSession

    with DataSession(url, token, data_dir, json=json) as session:
        session.list_datasets(name, kind, limit)


@datasets.command()
def show(dataset: Id, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Show everything that is known of an uploaded dataset."""
    from tunesmith.cli.datasets import DataSession

    with DataSession(url, token, data_dir, json=json) as session:
        session.show_dataset(dataset)


@datasets.command()
def delete(datasets: Ids, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Delete uploaded datasets that no unfinished task uses."""
    from tunesmith.cli.datasets import DataSession

    with DataSession(url, token, data_dir, json=json) as session:
        for dataset in datasets:
            session.delete_dataset(dataset)


@datasets.command()
def check(
    data: Source,
    validation: Validation = "",
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Check every row of some data. Exits with 1 when there are problems."""
    from tunesmith.cli.datasets import DataSession

    with DataSession(url, token, data_dir, json=json) as session:
        raise typer.Exit(session.check(data, validation))


@datasets.command()
def report(
    data: Source,
    validation: Validation = "",
    base_model: Annotated[
        str, typer.Option(help="Model whose tokenizer counts and masks; without it no tokens.", show_default=False)
    ] = "",
    max_seq_length: Annotated[int, typer.Option(min=8, help="Length at which rows would be cut.")] = 512,
    objective: Annotated[
        Literal["sft", "pretrain", "classification"], typer.Option(help="What is to be learnt.")
    ] = "sft",
    rows: Annotated[int, typer.Option(min=0, max=20, help="Rows to show as the model sees them.")] = 3,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Report on data in full: duplicates, lengths, what is cut, what is learnt. Exits with 1 on problems."""
    from tunesmith.cli.datasets import DataSession

    with DataSession(url, token, data_dir, json=json) as session:
        raise typer.Exit(session.report(data, validation, base_model, max_seq_length, objective, rows))
