"""Words of `tunesmith export` and `tunesmith exports`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tunesmith.cli.options import DataDir, Json, Limit, TaskId, Token, Url

exports = typer.Typer(no_args_is_help=True, help="List and show exports, fetch their files.")
Export = Annotated[str, typer.Argument(metavar="EXPORT", help="Id of the export.", show_default=False)]
Place = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="PATH", help="File or directory that receives it.", show_default=False),
]


def export(
    task: TaskId,
    form: Annotated[
        Literal["adapter", "merged", "gguf", "gguf-adapter", "gguf-base"],
        typer.Option("--format", help="Form of the package.", show_default=False),
    ],
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="GGUF type, for example Q4_K_M, which is the default. Repeatable."),
    ] = None,
    checkpoint: Annotated[int, typer.Option(min=0, help="Step of the checkpoint; 0: the final model.")] = 0,
    output_dir: Annotated[str, typer.Option(help="Directory of the platform that receives the result too.")] = "",
    modelfile: Annotated[bool | None, typer.Option(help="Write an Ollama Modelfile beside GGUF files.")] = None,
    importance: Annotated[
        str, typer.Option(metavar="DATA", help="Text for the importance matrix. Default: the training rows.")
    ] = "",
    name: Annotated[str | None, typer.Option(help="Name. Default export_<date>_<time>.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until the end, and then the files.")] = False,
    output: Place = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Package a model; with -o it is fetched as well. Exits with 1 when it was watched and did not complete.

    exports templates lists the usual packages, exports formats every form and type.
    """
    from tunesmith.cli.exports import ExportSession

    with ExportSession(url, token, data_dir, json=json) as session:
        started = session.export(
            task,
            form,
            types or [],
            checkpoint=checkpoint,
            output_dir=output_dir,
            modelfile=modelfile,
            importance=importance,
            name=name,
        )
        if watch or output:
            raise typer.Exit(session.watch_files(started.id, output))


@exports.command("list")
def list_exports(
    limit: Limit = 50, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """List exports, newest first."""
    from tunesmith.cli.exports import ExportSession

    with ExportSession(url, token, data_dir, json=json) as session:
        session.list_exports(limit)


@exports.command()
def show(export: Export, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Show the files of an export and the checks that they passed."""
    from tunesmith.cli.exports import ExportSession

    with ExportSession(url, token, data_dir, json=json) as session:
        session.show_export(export)


@exports.command()
def formats(json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """List the forms and GGUF types that a model can be exported to."""
    from tunesmith.cli.exports import ExportSession

    with ExportSession(url, token, data_dir, json=json) as session:
        session.list_formats()


@exports.command()
def templates(json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """List the usual packages, each with the options that make it."""
    from tunesmith.cli.exports import ExportSession

    with ExportSession(url, token, data_dir, json=json) as session:
        session.list_templates()


@exports.command()
def download(
    export: Export,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the file. Default: all.")] = "",
    output: Place = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Fetch files of an export; what was begun before is gone on with, and each file is verified."""
    from tunesmith.cli.exports import ExportSession

    with ExportSession(url, token, data_dir, json=json) as session:
        session.download(export, name, output or Path())
