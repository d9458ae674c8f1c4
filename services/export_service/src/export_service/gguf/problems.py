"""What stands against an export, told before any weight is read."""

from collections.abc import Iterator, Sequence
from typing import Any

from export_service.gguf.file_types import FILE_TYPES, SUPER_BLOCK
from export_service.gguf.outline import Outline, outline_problems


def problems(config: dict[str, Any], types: Sequence[str], *, has_text: bool) -> list[str]:
    """Why a model with this config.json cannot become GGUF files of these types; empty when it can.

    has_text says whether there are rows of training text for an importance matrix.
    """
    if found := list(outline_problems(config)):
        return found
    return [problem for name in types for problem in _type_problems(name, Outline(config), has_text=has_text)]


def _type_problems(name: str, outline: Outline, *, has_text: bool) -> Iterator[str]:
    if name not in FILE_TYPES:
        yield f"{name!r} is not a type of GGUF files; possible are {', '.join(FILE_TYPES)}"
        return
    kind = FILE_TYPES[name]
    if kind.importance and not has_text:
        yield f"{name} wants an importance matrix, which needs training text, and there is none; choose another type"
    rows = {
        "hidden_size": outline.width,
        "intermediate_size": int(outline.config["intermediate_size"]),
        "attention": outline.heads * outline.head_width,
    }
    unfit = {what: length for what, length in rows.items() if length % kind.block}
    if unfit:
        listed = ", ".join(f"{what} {length}" for what, length in unfit.items())
        advice = "choose Q8_0, Q4_0 or another type with blocks of 32" if kind.block == SUPER_BLOCK else "choose F16"
        yield f"{name} needs rows that are divisible by {kind.block}, and this model has {listed}; {advice}"
