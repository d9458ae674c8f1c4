"""Which columns of a row matter, by what is to be learnt: named by the user, or recognised by their usual names.

Column names differ between tools; the tables below are the only place that knows them, the first spelling found in a
row wins.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

SUPERVISED, PRETRAINING, CLASSIFICATION = "SUPERVISED", "PRETRAINING", "CLASSIFICATION"

INSTRUCTION = ("instruction", "prompt", "question", "query")
INPUT = ("input", "context")
REPLY = ("output", "response", "completion", "answer")
SYSTEM = ("system", "system_prompt")
MESSAGES = ("messages", "conversations", "conversation")
TEXT = ("text", "content", "document", "raw_content")
CLASSIFIED = ("text", "sentence", "content", "document", "review", "title", "prompt", "question", "query", "input")
LABEL = ("label", "labels", "class", "category", "target", "output", "response", "completion")
EXPECTED = {
    SUPERVISED: (
        f'"instruction" ({" / ".join(INSTRUCTION[1:])}) with "output" ({" / ".join(REPLY[1:])}) and optionally '
        f'"input", or "messages" ({" / ".join(MESSAGES[1:])}) with role and content, or "text"'
    ),
    PRETRAINING: f'"text" ({" / ".join(TEXT[1:])})',
    CLASSIFICATION: f'"text" ({" / ".join(CLASSIFIED[1:])}) with "label" ({" / ".join(LABEL[1:])})',
}
NEITHER = "Either 'text_column' or both 'prompt_column' and 'response_column' must be specified."
BOTH = "'text_column' excludes 'prompt_column' and 'response_column': name the one or the others."


class RowError(Exception):
    """A row cannot be trained on: (stable word, what is wrong, what to do)."""

    def __init__(self, reason: str, message: str, hint: str) -> None:
        super().__init__(reason, message, hint)
        self.reason, self.message, self.hint = reason, message, hint


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The columns that a user names; they win over what would be detected. Empty ones are detected."""

    text: str = ""
    prompt: str = ""
    response: str = ""
    system: str = ""
    messages: str = ""
    label: str = ""

    def problems(self, objective: str = SUPERVISED) -> Iterator[str]:
        """What is contradictory or missing in the names."""
        pair = (self.prompt, self.response)
        if self.text and (self.prompt if objective == CLASSIFICATION else any(pair)):
            yield BOTH
        if self.messages and (self.text or any(pair)):
            yield "'messages_column' excludes 'text_column', 'prompt_column' and 'response_column'."
        if objective == SUPERVISED and not self.text and any(pair) and not all(pair):
            yield NEITHER
        if objective == PRETRAINING and (self.messages or any(pair)):
            yield "pretraining reads plain text: name 'text_column' alone"
        if objective == CLASSIFICATION and self.messages:
            yield "a classification reads texts: name 'text_column' and 'label_column'"


class Columns(NamedTuple):
    """The columns of a row that matter: messages, or instruction and reply, or text, or text and label."""

    messages: str = ""
    instruction: str = ""
    input: str = ""
    reply: str = ""
    system: str = ""
    text: str = ""
    label: str = ""

    @property
    def format(self) -> str:
        """ "messages", "instruction", "text" or "classification"."""
        if self.messages:
            return "messages"
        return "classification" if self.label else "text" if self.text else "instruction"


def columns_of(names: Iterable[str], objective: str = SUPERVISED, named: ColumnNames | None = None) -> Columns:
    """The columns among these names. Raises RowError when they make no format, or a named one is not there."""
    present = set(names)
    named = named or ColumnNames()
    absent = [name for item in fields(named) if (name := getattr(named, item.name)) and name not in present]
    if named.system in absent:
        absent.remove(named.system)  # not every row has a system message
    if absent:
        raise missing(absent, present, objective)
    if objective == CLASSIFICATION:
        return _classification(present, named)
    if objective == PRETRAINING:
        return Columns(text=named.text or _first(TEXT, present) or _complain(["text"], present, objective))
    return _supervised(present, named)


def missing(absent: list[str], present: set[str], objective: str) -> RowError:
    """The complaint about columns that a row does not have."""
    listed = ", ".join(f'"{name}"' for name in sorted(present)[:12]) or "none"
    words = " and ".join(f'"{name}"' for name in absent[:2])
    message = f"column {words} is missing" if len(absent) == 1 else f"columns {words} are missing"
    return RowError("MISSING_COLUMNS", message, f"columns found: {listed}; expected {EXPECTED[objective]}")


def _supervised(present: set[str], named: ColumnNames) -> Columns:
    if named.text:
        return Columns(text=named.text)
    system = named.system if named.system in present else _first(SYSTEM, present)
    if named.prompt and named.response:
        return Columns("", named.prompt, "", named.response, system)
    if messages := named.messages or _first(MESSAGES, present):
        return Columns(messages=messages, system=system)
    instruction, reply = _first(INSTRUCTION, present), _first(REPLY, present)
    if instruction and reply:
        return Columns("", instruction, _first(INPUT, present), reply, system)
    if TEXT[0] in present:
        return Columns(text=TEXT[0])
    absent = [name for name, found in (("instruction", instruction), ("output", reply)) if not found]
    raise missing(absent, present, SUPERVISED)


def _classification(present: set[str], named: ColumnNames) -> Columns:
    label = named.label or named.response or _first(LABEL, present)
    text = named.text or named.prompt or _first(CLASSIFIED, present - {label})
    absent = [name for name, found in (("text", text), ("label", label)) if not found]
    if absent:
        raise missing(absent, present, CLASSIFICATION)
    return Columns(text=text, label=label)


def _complain(absent: list[str], present: set[str], objective: str) -> str:
    error = missing(absent, present, objective)
    if _first(MESSAGES, present) or _first(REPLY, present):
        error.hint += "; these rows are conversations: train on them with OBJECTIVE_SUPERVISED"
    raise RowError(error.reason, error.message, error.hint)


def _first(spellings: tuple[str, ...], present: set[str]) -> str:
    return next((name for name in spellings if name in present), "")
