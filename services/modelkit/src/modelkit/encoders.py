"""The encoder for what is learnt from rows of a format."""

from collections.abc import Sequence
from typing import Any

from modelkit.chat import ChatEncoder
from modelkit.datasets import CLASSIFICATION, PRETRAINING, FileReport
from modelkit.encoded import RowEncoder
from modelkit.text_encoders import ClassEncoder, TextEncoder, class_names


def encoder_for(
    report: FileReport, tokenizer: Any, config: Any, *, max_length: int, train_on_prompt: bool = False
) -> RowEncoder:
    """Cuts rows at max_length tokens, documents for pretraining nowhere."""
    reading = report.reading
    if reading.objective == CLASSIFICATION:
        return ClassEncoder(tokenizer, max_length=max_length, labels=labels_of(report))
    if reading.objective == PRETRAINING:
        return TextEncoder(tokenizer)
    if report.format == "text":
        return TextEncoder(tokenizer, max_length=max_length)
    stops = configured_ends(config)
    return ChatEncoder(tokenizer, max_length=max_length, stop_ids=stops, train_on_prompt=train_on_prompt)


def labels_of(report: FileReport) -> tuple[str, ...]:
    """The classes in the order of their numbers: those that the user lists, else those of the data."""
    return report.reading.labels or class_names(tuple(report.labels))


def configured_ends(config: Any) -> Sequence[int]:
    """The tokens that end a reply, as the model's configuration names them."""
    ids = getattr(config, "eos_token_id", None)
    return [int(token) for token in (ids if isinstance(ids, list) else [] if ids is None else [ids])]
