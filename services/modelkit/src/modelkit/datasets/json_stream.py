"""The objects of a JSON file one after another, in bounded memory: an array, or an object that holds one."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from modelkit.datasets.lines import MAX_LINE_BYTES
from modelkit.errors import InvalidDataset, Problem

BLOCK_BYTES = 1 << 20
WHITESPACE = " \t\n\r"
HINT = "write an array of objects, an object with such an array, or JSON Lines"
_DECODER = json.JSONDecoder()


def read_objects(path: Path) -> Iterator[Any]:
    """Yields the items of the file's array. Raises InvalidDataset when there is none, OSError, UnicodeDecodeError."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        first = reader.peek()
        if first == "{":
            reader.take()
            if not reader.find_array():
                raise _refusal(path, "holds no array of objects")
        elif first != "[":
            raise _refusal(path, "begins neither with [ nor with {")
        reader.take()
        while reader.peek() != "]":
            yield reader.value()
            if reader.peek() == ",":
                reader.take()
            elif reader.peek() != "]":
                raise _refusal(path, f"has no comma after item {reader.items} of its array")


def holds_lines(path: Path) -> bool:
    """Whether a file named .json is JSON Lines: one whole object, then another."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        try:
            if reader.peek() != "{":
                return False
            reader.value()
            return reader.peek() == "{"
        except (InvalidDataset, UnicodeDecodeError):
            return False


class _Reader:
    """A window on the text of a file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.items = 0
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def _more(self) -> bool:
        if self._ended:
            return False
        block = self._file.read(max(BLOCK_BYTES, len(self._text) - self._at))
        self._ended = not block
        self._text = self._text[self._at :] + self._decode.decode(block, final=self._ended)
        self._at = 0
        return not self._ended

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in WHITESPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self) -> None:
        """Passes over the character that peek showed."""
        self._at += 1

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError as error:
                if len(self._text) - self._at <= MAX_LINE_BYTES and self._more():
                    continue
                raise _refusal(self.path, f"cannot be read at item {self.items + 1}: {error}") from None
            except RecursionError:
                raise _refusal(self.path, f"is nested too deeply at item {self.items + 1}") from None
            if end == len(self._text) and self._more():
                continue  # a number may go on in the next block
            self._at = end
            self.items += 1
            return value

    def find_array(self) -> bool:
        """Goes to the first array among the values of the object that has just begun."""
        while self.peek() == '"':
            self.value()
            if self.peek() != ":":
                return False
            self.take()
            if self.peek() == "[":
                self.items = 0
                return True
            self.value()
            if self.peek() == ",":
                self.take()
        return False


def _refusal(path: Path, words: str) -> InvalidDataset:
    return InvalidDataset(Problem("dataset", f"{path.name} {words}; {HINT}"), reason="NOT_JSON")
