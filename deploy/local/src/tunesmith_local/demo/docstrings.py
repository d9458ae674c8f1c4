"""Questions and answers from the documentation strings of Python's standard library, read without importing it."""

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED = {
    "encodings",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "ensurepip",
}
SHORTEST, LONGEST = 20, 110
VALIDATION_SHARE = 0.05

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Pair:
    """A question and its answer."""

    question: str
    answer: str

    def row(self) -> dict[str, str]:
        """As a line of a dataset."""
        return {"instruction": self.question, "input": "", "output": self.answer}


def standard_library() -> Path:
    """Where the machine's Python keeps its library."""
    return Path(sysconfig.get_path("stdlib"))


def collect(library: Path) -> list[Pair]:
    """Every documented public name below a directory, in a stable order; no question and no answer comes twice."""
    questions: set[str] = set()
    answers: set[str] = set()
    pairs = []
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if SKIPPED.intersection(parts) or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        for pair in read(path, ".".join(part for part in parts if part != "__init__")):
            if pair.question not in questions and pair.answer.lower() not in answers:
                questions.add(pair.question)
                answers.add(pair.answer.lower())
                pairs.append(pair)
    return pairs


def split(pairs: list[Pair], seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """The pairs for training and those held out, in random order."""
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    held_out = round(len(pairs) * VALIDATION_SHARE)
    return shuffled[held_out:], shuffled[:held_out]


def read(path: Path, module: str) -> Iterator[Pair]:
    """The pairs of one source file; none when it is no valid Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _walk(tree, module)


def _walk(node: Documented, name: str) -> Iterator[Pair]:
    answer = first_paragraph(ast.get_docstring(node) or "")
    if answer:
        yield Pair(_question(node, name), answer)
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith(
                "_"
            ):
                yield from _walk(child, f"{name}.{child.name}")


def _question(node: Documented, name: str) -> str:
    if isinstance(node, ast.Module):
        return f"What is the module {name} for?"
    if isinstance(node, ast.ClassDef):
        return f"What is the class {name}?"
    return f"What does {name} do?"


def first_paragraph(text: str) -> str:
    """The first paragraph on one line; empty when it is no prose of a good length."""
    paragraph = re.split(r"\n\s*\n", text.strip())[0]
    line = " ".join(paragraph.split())
    prose = (
        line.isascii() and line[:1].isupper() and " " in line and not re.search(r">>>|::|\.\. |->|\|\||={3}|-{3}", line)
    )
    return line if prose and SHORTEST <= len(line) <= LONGEST else ""
