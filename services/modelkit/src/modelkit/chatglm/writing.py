"""Writes a whole converted model, for a process of its own: libraries read what strangers made."""

from pathlib import Path
from typing import IO

from transformers import PreTrainedTokenizerFast  # noqa: F401 - before memory is limited

from modelkit.chatglm.conversion import convert_outline, shards_of
from modelkit.chatglm.weights import convert_weights
from modelkit.errors import InvalidModel


def write(_: IO[bytes], source: str, target: str) -> None:
    """Writes the converted model to an empty directory. Raises ValueError or OSError."""
    try:
        config = convert_outline(Path(source), Path(target))
        convert_weights(shards_of(Path(source)), Path(target), config)
    except InvalidModel as error:
        raise ValueError("; ".join(problem.message for problem in error.problems)) from error
