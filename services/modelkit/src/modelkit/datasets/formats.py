"""The spellings of a training row, and how each becomes a conversation.

A row is either an instruction with a reply, or a list of messages. Column names differ between tools; the tables below
are the only place that knows them, the first spelling found in a row wins.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, TypedDict

INSTRUCTION = ("instruction", "prompt", "question", "query")
INPUT = ("input", "context")
REPLY = ("output", "response", "completion", "answer")
SYSTEM = ("system", "system_prompt")
MESSAGES = ("messages", "conversations", "conversation")
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
EXPECTED = (
    f'"instruction" ({" / ".join(INSTRUCTION[1:])}) with "output" ({" / ".join(REPLY[1:])}) and optionally "input", '
    f'or "messages" ({" / ".join(MESSAGES[1:])}) with role and content'
)


class Message(TypedDict):
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


class Columns(NamedTuple):
    """The columns of a row that matter. Either messages or both instruction and reply are set."""

    messages: str = ""
    instruction: str = ""
    input: str = ""
    reply: str = ""
    system: str = ""

    @property
    def format(self) -> str:
        """ "messages" or "instruction"."""
        return "messages" if self.messages else "instruction"


class RowError(Exception):
    """A row cannot be trained on: (stable word, what is wrong, what to do)."""

    def __init__(self, reason: str, message: str, hint: str) -> None:
        super().__init__(reason, message, hint)
        self.reason, self.message, self.hint = reason, message, hint


def columns_of(names: Iterable[str]) -> Columns:
    """The columns among these names. Raises RowError when they make no format."""
    present = set(names)

    def first(spellings: tuple[str, ...]) -> str:
        return next((name for name in spellings if name in present), "")

    if messages := first(MESSAGES):
        return Columns(messages=messages, system=first(SYSTEM))
    instruction, reply = first(INSTRUCTION), first(REPLY)
    if instruction and reply:
        return Columns("", instruction, first(INPUT), reply, first(SYSTEM))
    missing = [name for name, found in (("instruction", instruction), ("output", reply)) if not found]
    if len(missing) == 2:
        missing.append("messages")
    listed = ", ".join(f'"{name}"' for name in sorted(present)[:12]) or "none"
    message = "column " + " and ".join(f'"{name}"' for name in missing[:2]) + " is missing"
    raise RowError("MISSING_COLUMNS", message, f"columns found: {listed}; expected {EXPECTED}")


def to_messages(row: dict[str, Any], columns: Columns) -> list[Message]:
    """The conversation of a row. Raises RowError when a value has the wrong type, is empty or is out of order."""
    if columns.messages:
        return _from_messages(row, columns)
    instruction, reply = row[columns.instruction], row[columns.reply]
    extra = row.get(columns.input)
    if type(instruction) is not str or type(reply) is not str or (extra is not None and type(extra) is not str):
        raise _wrong_type(row, (columns.instruction, columns.input, columns.reply))
    if not reply or reply.isspace():
        raise RowError("EMPTY_REPLY", f'"{columns.reply}" is empty', "remove the row or write the reply")
    prompt = f"{instruction}\n{extra}" if extra and instruction else instruction or extra or ""
    if not prompt or prompt.isspace():
        raise RowError("EMPTY_PROMPT", f'"{columns.instruction}" is empty', "remove the row or write the instruction")
    messages: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return [*_system(row, columns), *messages]


def _from_messages(row: dict[str, Any], columns: Columns) -> list[Message]:
    turns = row[columns.messages]
    if type(turns) is not list or not turns:
        raise RowError("WRONG_TYPE", f'"{columns.messages}" is not a list of messages', "give at least two messages")
    messages = [_turn(turn, columns.messages) for turn in turns]
    expected = "user"
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and index == 0:
            continue
        if role != expected:
            raise RowError(
                "ROLE_ORDER",
                f"a {role} message stands where a {expected} message belongs",
                "an optional system message first, then user and assistant in turn",
            )
        expected = "assistant" if role == "user" else "user"
    if messages[-1]["role"] != "assistant":
        raise RowError("ROLE_ORDER", "the last message is not the assistant's", "end each conversation with a reply")
    if messages[0]["role"] != "system":
        return [*_system(row, columns), *messages]
    return messages


def _turn(turn: Any, column: str) -> Message:
    if type(turn) is not dict:
        raise RowError("WRONG_TYPE", f'an item of "{column}" is not an object', "write {role, content} objects")
    role = next((turn[key] for key in ROLE_KEYS if key in turn), None)
    content = next((turn[key] for key in CONTENT_KEYS if key in turn), None)
    if type(role) is not str or type(content) is not str:
        keys = ", ".join(f'"{key}"' for key in turn) or "none"
        raise RowError(
            "WRONG_TYPE", "a message lacks a text role or content", f"keys found: {keys}; expected role and content"
        )
    known = ROLES.get(role)
    if known is None:
        raise RowError("UNKNOWN_ROLE", f"role {role[:40]!r} is not known", "use system, user and assistant")
    if not content or content.isspace():
        if known == "assistant":
            raise RowError("EMPTY_REPLY", "an assistant message is empty", "remove the row or write the reply")
        if known == "user":
            raise RowError("EMPTY_PROMPT", "a user message is empty", "remove the row or write the message")
    return {"role": known, "content": content}


def _system(row: dict[str, Any], columns: Columns) -> list[Message]:
    content = row.get(columns.system) if columns.system else None
    if content is None or content == "":
        return []
    if type(content) is not str:
        raise _wrong_type(row, (columns.system,))
    return [{"role": "system", "content": content}]


def _wrong_type(row: dict[str, Any], names: Iterable[str]) -> RowError:
    wrong = [name for name in names if name and type(row.get(name)) is not str and row.get(name) is not None]
    wrong = wrong or [name for name in names if name and row.get(name) is None]
    found = ", ".join(f'"{name}" is {_type_name(row.get(name))}' for name in wrong)
    return RowError("WRONG_TYPE", f"{found}, not text", "write these columns as JSON strings")


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "text")
