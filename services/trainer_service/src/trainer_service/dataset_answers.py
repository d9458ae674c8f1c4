"""Answers about datasets as messages of the contract."""

from collections.abc import Mapping
from typing import Any

from modelkit.datasets import DatasetProblem, LabelledText, Row
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer


def reported(answer: Mapping[str, Any]) -> trainer.ReportDatasetResponse:
    """A report as data_answers makes it."""
    lengths = answer["lengths"]
    return trainer.ReportDatasetResponse(
        valid=answer["valid"],
        format=answer["format"],
        rows=answer["rows"],
        problems=[problem_message(DatasetProblem(**problem)) for problem in answer["problems"]],
        exact_duplicates=answer["exact_duplicates"],
        near_duplicates=answer["near_duplicates"],
        duplicates=[trainer.DuplicateRows(**pair) for pair in answer["duplicates"]],
        overlapping_rows=answer["overlapping_rows"],
        lengths=None if lengths is None else token_lengths(lengths),
        samples=[
            trainer.MaskedSample(pieces=[trainer.MaskedPiece(**piece) for piece in sample])
            for sample in answer["samples"]
        ],
        labels=answer["labels"],
        sha256=answer["sha256"],
        advice=answer["advice"],
    )


def token_lengths(lengths: Mapping[str, Any]) -> trainer.TokenLengths:
    """Lengths as dataset_report makes them."""
    return trainer.TokenLengths(
        mean=lengths["mean"],
        median=lengths["median"],
        p95=lengths["p95"],
        max=lengths["longest"],
        truncated_share=lengths["truncated_share"],
        masked_share=lengths["masked_share"],
        upper=lengths["upper"],
        rows=lengths["counts"],
    )


def sample_message(row: Row) -> trainer.Sample:
    """A row as messages: those of a conversation, a text in the role "text", a class in the role "label"."""
    if isinstance(row, list):
        messages = [trainer.ChatMessage(**message) for message in row]
    elif isinstance(row, LabelledText):
        messages = [
            trainer.ChatMessage(role="text", content=row.text),
            trainer.ChatMessage(role="label", content=row.label),
        ]
    else:
        messages = [trainer.ChatMessage(role="text", content=row)]
    return trainer.Sample(messages=messages)


def problem_message(problem: DatasetProblem) -> trainer.DatasetProblem:
    """A problem of a dataset."""
    return trainer.DatasetProblem(
        file=problem.file,
        reason=problem.reason,
        message=problem.message,
        hint=problem.hint,
        count=problem.count,
        first_lines=problem.first_lines,
    )
