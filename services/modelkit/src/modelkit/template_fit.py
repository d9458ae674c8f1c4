"""Whether a chat template can show the conversations of a dataset."""

from typing import Any

from modelkit.chat import ChatEncoder
from modelkit.datasets import FileReport, JsonlDataset
from modelkit.errors import InvalidTemplate

MAX_SHAPES = 64


def template_problems(encoder: ChatEncoder, rows: JsonlDataset, report: FileReport) -> list[str]:
    """Renders one row of each shape that the data has: those that the template refuses, or in which it leaves out
    what a tool said."""
    problems = []
    shapes = sorted((shape, index) for shape, index in report.shapes.items() if index < len(rows))
    for (turns, first, tools), index in shapes[:MAX_SHAPES]:
        shape = f"conversations of {turns} messages that begin with a {first} message, first row {index + 1}"
        row: Any = rows[index]
        try:
            with encoder.template.time_limit():
                text, _ = encoder.spans(row)
        except InvalidTemplate as error:
            problems.append(f"{shape}: {error.problems[0].message}")
            continue
        if tools and any(turn["role"] == "tool" and turn["content"].strip() not in text for turn in row):
            problems.append(f"{shape}: the chat template leaves out what a tool says; write it as a user message")
    return problems
