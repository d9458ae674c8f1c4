"""A parsed row as what is trained on: a conversation, a text, or a text with its class."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

from modelkit.datasets.columns import SUPERVISED, ColumnNames, Columns, RowError, columns_of

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
# What may stand after a message of each role.
FOLLOWING = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
ORDER = "an optional system message first, then user and assistant in turn; a tool's result goes before a reply"
MAX_LAYOUTS = 1024


class Message(TypedDict):
    """One turn of a conversation; role is "system", "user", "assistant" or "tool" (what a called tool answered)."""

    role: str
    content: str


class LabelledText(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


Row = list[Message] | str | LabelledText


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read: what is to be learnt, the columns that the user names, the classes that the user lists."""

    objective: str = SUPERVISED
    columns: ColumnNames = field(default_factory=ColumnNames)
    labels: tuple[str, ...] = ()


class RowReader:
    """Turns parsed rows into what is trained on; remembers which columns each layout of keys means.

    met_system: some row had the column of system messages that the user names.
    """

    def __init__(self, reading: Reading | None = None) -> None:
        self.reading = reading or Reading()
        self.met_system = False
        self._layouts: dict[tuple[str, ...], Columns] = {}

    def columns(self, row: dict[str, Any]) -> Columns:
        """The columns of a row. Raises RowError."""
        keys = tuple(row)
        known = self._layouts.get(keys)
        if known is None:
            known = columns_of(keys, self.reading.objective, self.reading.columns)
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[keys] = known
            self.met_system = self.met_system or self.reading.columns.system in keys
        return known

    def read(self, row: dict[str, Any]) -> Row:
        """What a row says. Raises RowError."""
        return to_row(row, self.columns(row), self.reading.labels)


def to_row(row: dict[str, Any], columns: Columns, labels: tuple[str, ...] = ()) -> Row:
    """What a row says. Raises RowError when a value has the wrong type, is empty or is out of order."""
    if columns.text:
        text = row[columns.text]
        if type(text) is not str:
            raise _wrong_type(row, (columns.text,))
        if not text or text.isspace():
            raise RowError("EMPTY_TEXT", f'"{columns.text}" is empty', "remove the row or write the text")
        return LabelledText(text, _label(row[columns.label], columns.label, labels)) if columns.label else text
    if columns.messages:
        return _from_messages(row, columns)
    return _from_instruction(row, columns)


def _from_instruction(row: dict[str, Any], columns: Columns) -> list[Message]:
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
    before = ""
    for message in messages:
        role = message["role"]
        if role not in FOLLOWING[before]:
            belongs = FOLLOWING[before][-1] if not before else FOLLOWING[before][0]
            there, wanted = (f"{'an' if name[0] in 'aeiou' else 'a'} {name} message" for name in (role, belongs))
            raise RowError("ROLE_ORDER", f"{there} stands where {wanted} belongs", ORDER)
        before = role
    if before != "assistant":
        raise RowError("ROLE_ORDER", "the last message is not the assistant's", "end each conversation with a reply")
    if messages[0]["role"] != "system":
        return [*_system(row, columns), *messages]
    return messages


def _turn(turn: Any, column: str) -> Message:
    if type(turn) is not dict:
        raise RowError("WRONG_TYPE", f'an item of "{column}" is not an object', "write {role, content} objects")
    role = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    if type(content) is list:
        content = _joined(content)
    if type(role) is str and not content and turn.get("tool_calls"):
        hint = "write the call into content, the way the base model writes it"
        raise RowError("TOOL_CALLS", "an assistant message has tool_calls in place of content", hint)
    if type(role) is not str or type(content) is not str:
        keys = ", ".join(f'"{key}"' for key in turn) or "none"
        raise RowError(
            "WRONG_TYPE", "a message lacks a text role or content", f"keys found: {keys}; expected role and content"
        )
    known = ROLES.get(role)
    if known is None:
        raise RowError("UNKNOWN_ROLE", f"role {role[:40]!r} is not known", "use system, user, assistant and tool")
    if not content or content.isspace():
        if known == "assistant":
            raise RowError("EMPTY_REPLY", "an assistant message is empty", "remove the row or write the reply")
        if known == "user":
            raise RowError("EMPTY_PROMPT", "a user message is empty", "remove the row or write the message")
    return {"role": known, "content": content}


def _joined(parts: list[Any]) -> str | None:
    """The text of content that is a list of text parts; None when a part is something else."""
    texts = [part.get("text") if type(part) is dict and part.get("type") == "text" else None for part in parts]
    return "".join(map(str, texts)) if texts and all(type(text) is str for text in texts) else None


def _system(row: dict[str, Any], columns: Columns) -> list[Message]:
    content = row.get(columns.system) if columns.system else None
    if content is None or content == "":
        return []
    if type(content) is not str:
        raise _wrong_type(row, (columns.system,))
    return [{"role": "system", "content": content}]


def _label(value: Any, column: str, labels: tuple[str, ...]) -> str:
    """The name of a class; a number stands for itself, or for a place in the list of classes."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) not in (str, int, bool):
        message = f'"{column}" is {_type_name(value)}, neither text nor a whole number'
        raise RowError("WRONG_TYPE", message, "give each row one class")
    label = str(value).lower() if type(value) is bool else str(value).strip()
    if not label:
        raise RowError("EMPTY_LABEL", f'"{column}" is empty', "remove the row or give its class")
    if labels and label not in labels:
        if label.isdecimal() and int(label) < len(labels):
            return labels[int(label)]
        listed = ", ".join(labels[:10])
        raise RowError("UNKNOWN_LABEL", f"class {label[:40]!r} is not among the labels", f"the labels are {listed}")
    return label


def _wrong_type(row: dict[str, Any], names: Iterable[str]) -> RowError:
    wrong = [name for name in names if name and type(row.get(name)) is not str and row.get(name) is not None]
    wrong = wrong or [name for name in names if name and row.get(name) is None]
    found = ", ".join(f'"{name}" is {_type_name(row.get(name))}' for name in wrong)
    return RowError("WRONG_TYPE", f"{found}, not text", "write these columns as JSON strings")


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "text")
