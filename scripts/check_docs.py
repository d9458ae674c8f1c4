"""Checks what can be checked of the documentation: links, settings, and that both languages have the same parts."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic_settings import BaseSettings

from eval_service.settings import EvalSettings
from export_service.settings import ExportSettings
from gateway.settings import GatewaySettings
from task_service.settings import TaskServiceSettings
from trainer_service.settings import TrainerSettings

ROOT = Path(__file__).parent.parent
OPERATIONS = "docs/operations.md"
TRANSLATED = {
    "README.md": "README.zh.md",
    "docs/guide.md": "docs/guide.zh.md",
    "docs/parameters.md": "docs/parameters.zh.md",
    "docs/http.md": "docs/http.zh.md",
    "docs/memory-and-presets.md": "docs/memory-and-presets.zh.md",
    "docs/evaluation.md": "docs/evaluation.zh.md",
    "docs/export-parity.md": "docs/export-parity.zh.md",
}
SETTINGS: tuple[type[BaseSettings], ...] = (
    EvalSettings,
    ExportSettings,
    GatewaySettings,
    TaskServiceSettings,
    TrainerSettings,
)


def documents() -> list[Path]:
    """Every Markdown file of the repository."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.splitlines()]


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings make."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links() -> Iterator[str]:
    """Relative links that lead nowhere."""
    for page in documents():
        text = page.read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists():
                yield f"{page.relative_to(ROOT)}: {target} does not exist"
            elif anchor and anchor not in anchors(there.read_text()):
                yield f"{page.relative_to(ROOT)}: {target} has no such heading"


def undocumented_settings() -> Iterator[str]:
    """Settings that the operations guide does not name, and names there that are no settings."""
    text = (ROOT / OPERATIONS).read_text()
    names = {f"TUNESMITH_{name.upper()}" for settings in SETTINGS for name in settings.model_fields}
    yield from (f"{OPERATIONS}: {name} is missing" for name in sorted(names) if f"`{name}`" not in text)
    rows = set(re.findall(r"^\| `(TUNESMITH_\w+)` ", text, re.MULTILINE))
    yield from (f"{OPERATIONS}: {name} is no setting" for name in sorted(rows - names))


def outline(page: Path) -> list[str]:
    """Levels of headings and languages of code blocks in order; mermaid labels and texts may differ."""
    return re.findall(r"^(#+(?= )|```\w+)", page.read_text(), re.MULTILINE)


def diverging_translations() -> Iterator[str]:
    """Pages whose translation has other parts."""
    for page, translation in TRANSLATED.items():
        if outline(ROOT / page) != outline(ROOT / translation):
            yield f"{translation}: headings and code blocks are not those of {page}"


def main() -> int:
    problems = [*broken_links(), *undocumented_settings(), *diverging_translations()]
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
