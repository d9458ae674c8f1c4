"""Checks what can be checked of the documentation: links, settings, and that both languages say the same."""

import itertools
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
# Each service has its own; the guide says so in words.
DIFFERS = ("port", "warm_seconds", "calibration_file")


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


def wrong_defaults() -> Iterator[str]:
    """Settings whose default in the operations guide is not the code's; those in DIFFERS are passed over."""
    text = (ROOT / OPERATIONS).read_text()
    told: dict[str, set[str]] = {}
    for name, default in re.findall(r"^\| `(TUNESMITH_\w+)` \| ([^|]*)\|", text, re.MULTILINE):
        told.setdefault(name, set()).add(default.strip())
    for settings in SETTINGS:
        for field, info in settings.model_fields.items():
            name = f"TUNESMITH_{field.upper()}"
            default = shown(info.default)
            if name in told and field not in DIFFERS and default not in told[name]:
                yield f"{OPERATIONS}: {name} is {default or 'empty'} by default, not {' or '.join(sorted(told[name]))}"


def shown(default: object) -> str:
    """A default as the guide writes it."""
    if default is None or default == ():
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else str(default).removesuffix('.0')}`"


def outline(page: Path) -> list[str]:
    """Levels of headings and languages of code blocks in order; mermaid labels and texts may differ."""
    return re.findall(r"^(#+(?= )|```\w+)", page.read_text(), re.MULTILINE)


def sections(page: Path) -> list[str]:
    """A page by its headings; lines of code blocks are none."""
    text = re.sub(r"(?ms)^```.*?^```", lambda block: re.sub(r"(?m)^#", " #", block[0]), page.read_text())
    return re.split(r"(?m)^(?=#+ )", text)


def substance(section: str) -> tuple[set[str], int, list[str]]:
    """What no translation changes: names in the text, rows of tables, and commands.

    In names what stands for something is left out, of commands the words in quotes, comments, and the translation's
    own files.
    """
    text = re.sub(r"(?ms)^```.*?^```", "", section)
    names = {re.sub(r"<.*?>", "<>", name) for name in re.findall(r"`([^`\n]+)`", text)}
    rows = len(re.findall(r"^\|", text, re.MULTILINE))
    commands = [line for block in re.findall(r"(?ms)^```bash\n(.*?)^```", section) for line in block.splitlines()]
    plain = [re.sub(r"\"[^\"]*\"|#.*", "", line).replace(".zh.md", ".md").rstrip() for line in commands]
    return names, rows, plain


def diverging_translations() -> Iterator[str]:
    """Pages whose translation has other parts, names other things, or shows other commands."""
    for page, translation in TRANSLATED.items():
        if outline(ROOT / page) != outline(ROOT / translation):
            yield f"{translation}: headings and code blocks are not those of {page}"
            continue
        for ours, theirs in zip(sections(ROOT / page), sections(ROOT / translation), strict=True):
            one, other = substance(ours), substance(theirs)
            if one != other:
                title = theirs.partition("\n")[0]
                names = ", ".join(sorted(one[0] ^ other[0])) or "rows of tables, or commands"
                yield f"{translation}: {title}: not the same as in {page}: {names}"


def main() -> int:
    found = itertools.chain(broken_links(), undocumented_settings(), wrong_defaults(), diverging_translations())
    problems = list(dict.fromkeys(found))
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
