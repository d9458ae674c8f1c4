"""The few numbers of a GGUF file's metadata that tell how much memory it needs, read without the file's tensors.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MOST_NAME_BYTES = 1 << 16
MOST_FILE_BYTES = 1 << 48
MOST_KEPT = 1 << 12  # an array of a number for each layer is shorter, a vocabulary is longer

Value = int | float | str | list[int | float]


class _Damaged(ValueError):
    """This is no metadata."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Entries by name, as far as they could be read; long texts and vocabularies are left out."""

    entries: dict[str, Value] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """A number of the model's architecture, the largest where each layer has its own; 0 where there is none."""
        found = self._of_architecture(name)
        return max((value for value in found if isinstance(value, int)), default=0)

    def total(self, name: str, layers: int) -> int:
        """The sum of a number over layers, whether there is one for all or one for each."""
        found = [value for value in self._of_architecture(name) if isinstance(value, int)]
        return sum(found) if len(found) > 1 else sum(found) * layers

    def _of_architecture(self, name: str) -> list[int | float]:
        value = self.entries.get(f"{self.entries.get('general.architecture')}.{name}", 0)
        if isinstance(value, str):
            return []
        return value if isinstance(value, list) else [value]


def read_metadata(path: Path) -> Metadata:
    """The metadata of a file; of one that is damaged what comes before the damage. Raises OSError."""
    entries: dict[str, Value] = {}
    with path.open("rb") as file, suppress(_Damaged):
        if file.read(4) != MAGIC:
            return Metadata()
        _number(file, 4)  # version
        _number(file, 10)  # tensors
        for _ in range(int(_number(file, 10))):
            name = _text(file)
            if (value := _value(file, int(_number(file, 4)))) is not None:
                entries[name] = value
    return Metadata(entries)


def _value(file: BinaryIO, kind: int) -> Value | None:
    if kind == STRING:
        return _text(file)
    if kind != ARRAY:
        return _number(file, kind)
    kind, count = int(_number(file, 4)), int(_number(file, 10))
    if kind in NUMBERS and count <= MOST_KEPT:
        return [_number(file, kind) for _ in range(count)]
    if kind in NUMBERS:
        _pass_over(file, count * struct.calcsize(NUMBERS[kind]))
        return None
    if kind != STRING:
        raise _Damaged
    for _ in range(count):
        _text(file)
    return None


def _number(file: BinaryIO, kind: int) -> int | float:
    if kind not in NUMBERS:
        raise _Damaged
    form = NUMBERS[kind]
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise _Damaged
    number: int | float = struct.unpack(form, data)[0]
    return number


def _pass_over(file: BinaryIO, size: int) -> None:
    if size > MOST_FILE_BYTES:
        raise _Damaged
    file.seek(size, 1)


def _text(file: BinaryIO) -> str:
    """A text, empty for a long one, which is passed over."""
    size = int(_number(file, 10))
    if size > MOST_NAME_BYTES:
        _pass_over(file, size)
        return ""
    data = file.read(size)
    if len(data) < size:
        raise _Damaged
    return data.decode(errors="replace")
