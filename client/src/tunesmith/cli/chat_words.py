"""Words of `tunesmith chat`."""

from typing import Annotated

import typer

from tunesmith.cli.options import DataDir, Json, Token, Url, setting

GENERATION_PARAMETERS = "max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, seed, stop"


def chat(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Id of a training, or of an export of a model.", show_default=False)
    ],
    checkpoint: Annotated[
        int, typer.Option(min=0, help="Step of the checkpoint; 0: the final model, else the newest.")
    ] = 0,
    compare: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Step of another checkpoint that answers too, 0: the final model; needs --prompt. Repeatable."
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model before training.")] = False,
    artifact: Annotated[str, typer.Option(help="Of an export: name of its GGUF file.", show_default=False)] = "",
    system: Annotated[str, typer.Option(help="System prompt.", show_default=False)] = "",
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask this once and exit.", show_default=False)
    ] = None,
    settings: Annotated[list[str] | None, setting("temperature=0")] = None,
    json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Talk to a model; its answers appear as they are generated. Ctrl-C stops an answer, Ctrl-D ends."""
    from tunesmith.cli.chat import ChatSession

    with ChatSession(url, token, data_dir, json=json) as session:
        session.begin(task, checkpoint, settings or [], base=base, artifact=artifact, system=system)
        if prompt is not None:
            session.ask_once(prompt, compare or [])
        else:
            session.talk(compare or [])
