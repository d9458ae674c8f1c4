"""Words of what is asked before a training starts: estimate, environment, quota, parameters, base models."""

from typing import Annotated, Literal

import typer

from tunesmith.cli.options import (
    BaseModel,
    Data,
    DataDir,
    DatasetId,
    Json,
    Method,
    Objective,
    OutputDir,
    Settings,
    TemplateId,
    Token,
    Url,
    Validation,
)


def estimate(
    base_model: BaseModel,
    dataset: Data = "",
    dataset_id: DatasetId = "",
    method: Method = None,
    objective: Objective = None,
    template: TemplateId = "",
    settings: Settings = None,
    output_dir: OutputDir = "",
    validation: Validation = "",
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Estimate memory, disk, checkpoints and time of a training. Exits with 1 when it would not fit."""
    from tunesmith.cli.planning import PlanningSession
    from tunesmith.cli.wish import Wish

    wish = Wish(base_model, dataset, dataset_id, method, objective, template, settings or [], output_dir, validation)
    with PlanningSession(url, token, data_dir, json=json) as session:
        raise typer.Exit(session.estimate(wish))


def environment(json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Check that everything training needs is there. Exits with 1 when something is missing."""
    from tunesmith.cli.planning import PlanningSession

    with PlanningSession(url, token, data_dir, json=json) as session:
        raise typer.Exit(session.environment())


def quota(
    user: Annotated[str, typer.Option(help="Another user, for administrators.", show_default=False)] = "",
    allowance: Annotated[
        int | None, typer.Option("--set", min=-1, help="New monthly allowance; -1: unlimited. Needs --user.")
    ] = None,
    when_spent: Annotated[
        Literal["continue", "stop"] | None,
        typer.Option(help="Train on without saving, or save a last checkpoint and stop. Needs --set."),
    ] = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Show the allowance of checkpoints and what is used of it; administrators may set it."""
    from tunesmith.cli.planning import PlanningSession

    with PlanningSession(url, token, data_dir, json=json) as session:
        session.quota(user, allowance, when_spent)


def parameters(
    surface: Annotated[
        Literal["native", "training", "llm_finetuning", "finetuning", "workflow", "studio"],
        typer.Option(help="Whose defaults and ranges."),
    ] = "native",
    objective: Annotated[
        Literal["sft", "pretrain", "classification"] | None, typer.Option(help="Only parameters of this training.")
    ] = None,
    lang: Annotated[Literal["en", "zh"], typer.Option(help="Language of names and advice.")] = "en",
    advice: Annotated[bool, typer.Option("--advice", help="Print what is advised too.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List every training parameter with its default and range."""
    from tunesmith.cli.planning import PlanningSession

    with PlanningSession(url, token, data_dir, json=json) as session:
        session.parameters(surface, objective or "", lang, advice)


def list_models(
    modality: Annotated[
        str, typer.Option(help="Only this modality, for example language_model.", show_default=False)
    ] = "",
    local: Annotated[bool, typer.Option("--local", help="Only those whose files are here.")] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List the base models of the catalogue and those found on the machine."""
    from tunesmith.cli.planning import PlanningSession

    with PlanningSession(url, token, data_dir, json=json) as session:
        session.base_models(modality, local)
