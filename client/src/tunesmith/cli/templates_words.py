"""Words of `tunesmith templates`."""

from typing import Annotated

import typer

from tunesmith.cli.options import PARAMETERS, DataDir, Json, Method, Objective, Settings, Token, Url

templates = typer.Typer(no_args_is_help=True, help="Keep named sets of parameters.")

Id = Annotated[str, typer.Argument(metavar="TEMPLATE", help="Id of the template.", show_default=False)]


@templates.command("list")
def list_templates(
    kind: Annotated[
        str, typer.Option("--type", help="Only this kind of training, for example sft.", show_default=False)
    ] = "",
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List the platform's templates and your own."""
    from tunesmith.cli.templates import TemplateSession

    with TemplateSession(url, token, data_dir, json=json) as session:
        session.list_templates(kind)


@templates.command()
def show(
    template: Id,
    version: Annotated[int, typer.Option(min=0, help="Version; 0: the newest.")] = 0,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Show the parameters of a template."""
    from tunesmith.cli.templates import TemplateSession

    with TemplateSession(url, token, data_dir, json=json) as session:
        session.show_template(template, version)


@templates.command(epilog=f"Parameters for --set: {PARAMETERS}")
def save(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the template.", show_default=False)],
    settings: Settings = None,
    method: Method = None,
    objective: Objective = None,
    base_model: Annotated[str, typer.Option(help="Base model to fill in.", show_default=False)] = "",
    description: Annotated[str, typer.Option(help="What it is for.", show_default=False)] = "",
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Save parameters as a template; the same name again makes its next version. Tasks keep what they took."""
    from tunesmith.cli.templates import TemplateSession
    from tunesmith.cli.wish import Wish

    wish = Wish(base_model, method=method, objective=objective, settings=settings or [])
    with TemplateSession(url, token, data_dir, json=json) as session:
        session.save_template(name, wish, description)


@templates.command()
def delete(template: Id, json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Delete one of your templates with all its versions."""
    from tunesmith.cli.templates import TemplateSession

    with TemplateSession(url, token, data_dir, json=json) as session:
        session.delete_template(template)
