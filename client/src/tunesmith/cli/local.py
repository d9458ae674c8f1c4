"""Commands that need the platform's own parts on this machine: tunesmith[local]."""

import re
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from tunesmith.cli.failures import MissingPart, UsageProblem
from tunesmith.client.config import default_data_dir

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def start_platform(host: str, port: int, data_dir: Path | None, workers: int, allowed_roots: list[Path]) -> int:
    """Runs the platform until it is stopped; the exit code."""
    run = _part("tunesmith_local.up", "run")
    return int(run(host=host, port=port, data_dir=_folder(data_dir), workers=workers, allowed_roots=allowed_roots))


def sign_token(data_dir: Path | None, user: str, role: str, expires: str) -> str:
    """A token for a user, signed with the key of the data directory. Raises UsageProblem without such a key."""
    lifetime = parse_lifetime(expires)
    issue = _part("tunesmith_local.identity", "issue_token")
    try:
        return str(issue(_folder(data_dir), user, role, lifetime))
    except FileNotFoundError as error:
        raise UsageProblem(f"{error.filename} is missing; `tunesmith up --data-dir DIR` makes the key") from None


def make_scratch_model(
    out_dir: Path, corpus: Path, family: str, hidden_size: int, layers: int, vocab_size: int
) -> None:
    """Makes a small untrained model in a new directory."""
    build = _part("modelkit.scratch", "build")
    invalid_model = _part("modelkit.errors", "InvalidModel")
    try:
        build(out_dir, family=family, hidden_size=hidden_size, layers=layers, vocab_size=vocab_size, corpus=corpus)
    except invalid_model as error:
        raise UsageProblem(str(error)) from None


def parse_lifetime(text: str) -> timedelta:
    """The duration that for example 90m, 12h, 30d or 4w stands for. Raises UsageProblem."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text.strip())
    if match is None:
        raise UsageProblem(f"--expires {text}: write a number and m, h, d or w, for example 30d")
    return int(match[1]) * _UNITS[match[2]]


def _folder(data_dir: Path | None) -> Path:
    return (data_dir or default_data_dir()).expanduser().absolute()


def _part(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingPart(f"this command needs {error.name}; install it with: pip install 'tunesmith[local]'") from None
