"""Writes the pages that are drawn from the parameter table: docs/parameters.md, docs/memory-and-presets.md and their
Chinese translations. With --check it only says which of them are not what the table says."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from parameterkit import PARAMETERS, SURFACES, Parameter, defaults, effective_defaults, guidance
from parameterkit.limits import Limits
from parameterkit.messages import CHINESE, ENGLISH, Text
from parameterkit.parameter import CATEGORIES
from parameterkit.rules import DERIVED, PRECEDENCE
from parameterkit.surfaces import NATIVE
from task_service.templates.builtin import BUILTIN, PREFIX, Builtin

DOCS = Path(__file__).parent.parent / "docs"
SUFFIX = {ENGLISH: ".md", CHINESE: ".zh.md"}
GENERATED = "<!-- Written by scripts/parameter_docs.py; `make docs` writes it anew. -->"

_CATEGORIES = {
    "data": Text("Data", "数据配置"),
    "training": Text("Training", "训练配置"),
    "lora": Text("LoRA", "LoRA 配置"),
    "quantization": Text("Quantization", "量化配置"),
    "optimization": Text("Precision and memory", "优化配置"),
    "logging": Text("Logging and watching", "日志配置"),
    "general": Text("General", "通用配置"),
}
_TYPES = {
    "integer": Text("integer", "整数"),
    "number": Text("number", "数值"),
    "boolean": Text("true or false", "布尔值"),
    "text": Text("text", "文本"),
    "path": Text("path", "路径"),
    "list": Text("list of texts", "文本列表"),
}
_OTHER_LANGUAGE = Text("[中文]({page}.zh.md)", "[English]({page}.md)")
_PARAMETERS = Text("Parameters", "参数")
_INTRODUCTION = Text(
    "Every parameter of a fine-tuning of a language model. The platform's defaults hold for `/v1` and the `tunesmith` "
    "command; each documented surface has its own, listed [below](#defaults-of-the-surfaces). `GET /v1/parameters` "
    "answers the same table. How much memory a training needs, presets and remedies are on "
    "[their own page](memory-and-presets.md).",
    "语言模型微调的全部参数。平台默认值适用于 `/v1` 和 `tunesmith` 命令；各文档接口有自己的默认值，"
    "见[下表](#各接口的默认值)。"
    "`GET /v1/parameters` 返回同一张表。显存需求、预设和排障方法见[另一页](memory-and-presets.zh.md)。",
)
_COLUMNS = (
    Text("Name", "名称"),
    Text("Display name", "界面显示名称"),
    Text("Meaning", "说明"),
    Text("Value", "取值"),
    Text("Default", "默认值"),
    Text("Advice", "推荐"),
)
_RULES = Text("What wins, and what does not go together", "优先级与互斥规则")
_DEFAULTS = Text("Defaults of the surfaces", "各接口的默认值")
_DEFAULTS_NOTE = Text(
    "An empty cell means the platform's default. In the studio, pretraining trains every weight (`method` full).",
    "空白表示使用平台默认值。训练工作室的预训练默认训练全部权重（`method` 为 full）。",
)
_RANGES = Text("Ranges of the surfaces", "各接口的取值范围")
_RANGES_NOTE = Text(
    "Where a surface is narrower than the platform; all else is as above.", "比平台更窄的范围；其余与上表相同。"
)
_MEMORY = Text("Memory, presets and remedies", "显存、预设与排障")
_MEMORY_INTRODUCTION = Text(
    "What the documented systems advise. Numbers are rules of thumb; the estimate that is made before a start computes "
    "the need of your own set-up. What each parameter means is told under [Parameters](parameters.md).",
    "各文档系统的建议。数字为经验值；提交前的资源估算会按您的配置计算。各参数的含义见[参数](parameters.zh.md)。",
)
_PRESETS = Text("Presets", "预设")
_PRESETS_NOTE = Text(
    "The platform's templates: forms start from them, and a task takes one with `template_id`; its own values win.",
    "平台自带的参数模板：表单由此开始，任务可用 `template_id` 引用；任务自己设置的参数优先。",
)
_PRACTICES = Text("Good practice", "最佳实践")
_REMEDIES = Text("When something goes wrong", "故障排除")
_LINKS = Text("Further reading", "参考资源")
_REQUIRED = Text("required", "必填")
_AS = Text("as `{name}`", "同 `{name}`")


def pages() -> Iterator[tuple[Path, str]]:
    """Each page's path and what it should say."""
    for language, suffix in SUFFIX.items():
        for name, title, body in (
            ("parameters", _PARAMETERS, parameters),
            ("memory-and-presets", _MEMORY, memory_and_presets),
        ):
            heading = [f"# {title.say(language)}", "", GENERATED, "", _OTHER_LANGUAGE.say(language, page=name), ""]
            yield DOCS / f"{name}{suffix}", "\n".join([*heading, *body(language)]).rstrip() + "\n"


def parameters(language: str) -> Iterator[str]:
    """The page of every parameter."""
    say = partial(_say, language=language)
    yield from (say(_INTRODUCTION), "")
    for category in CATEGORIES:
        rows = [_row(row, language) for row in PARAMETERS if row.category == category]
        yield from (f"## {say(_CATEGORIES[category])}", "", *_markdown(map(say, _COLUMNS), rows), "")
    yield from _tables(guidance.CHOICES, language)
    yield from (f"## {say(_RULES)}", "", *(f"- {say(rule)}" for rule in PRECEDENCE), "")
    yield from (f"## {say(_DEFAULTS)}", "", say(_DEFAULTS_NOTE), "", *_defaults(language), "")
    yield from (f"## {say(_RANGES)}", "", say(_RANGES_NOTE), "", *_ranges(language))


def memory_and_presets(language: str) -> Iterator[str]:
    """The page of the documents' advice."""
    say = partial(_say, language=language)
    yield from (say(_MEMORY_INTRODUCTION), "")
    yield from _tables(guidance.TABLES, language)
    yield from (f"## {say(_PRESETS)}", "", say(_PRESETS_NOTE), "", *_presets(language), "")
    for title, parts in ((_PRACTICES, guidance.PRACTICES), (_REMEDIES, guidance.REMEDIES)):
        yield from (f"## {say(title)}", "")
        for advice in parts:
            sign = (say(advice.sign), "") if advice.sign else ()
            items = (f"{number}. {say(item)}" for number, item in enumerate(advice.items, 1))
            yield from (f"### {say(advice.title)}", "", *sign, *items, "")
    yield from (f"## {say(_LINKS)}", "", *(f"- [{say(text)}]({address})" for text, address in guidance.LINKS))


def _tables(tables: Iterable[guidance.Table], language: str) -> Iterator[str]:
    say = partial(_say, language=language)
    for table in tables:
        rows = [[say(cell) for cell in row] for row in table.rows]
        yield from (f"## {say(table.title)}", "", *_markdown(map(say, table.columns), rows), "")
        yield from (say(table.note), "") if table.note else ()


def _row(row: Parameter, language: str) -> list[str]:
    aliases = f" ({', '.join(f'`{alias}`' for alias in row.aliases)})" if row.aliases else ""
    chinese = language == CHINESE
    return [
        f"`{row.name}`{aliases}",
        row.label_zh if chinese else row.label_en,
        row.description_zh if chinese else row.description_en,
        _values(row, language),
        _default(row, language),
        row.advice_zh if chinese else row.advice_en,
    ]


def _values(row: Parameter, language: str) -> str:
    if row.choices:
        return ", ".join(_choice(row, choice) for choice in row.choices)
    bounds = row.limits
    limited = _interval(bounds) if _bounded(bounds) else ""
    return f"{_TYPES[row.type].say(language)} {limited}".strip()


def _choice(row: Parameter, choice: str) -> str:
    spellings = [f"`{word}`" for word, meant in row.words.items() if meant == choice]
    return f"`{choice}` ({', '.join(spellings)})" if spellings else f"`{choice}`"


def _bounded(bounds: Limits) -> bool:
    return any(bound is not None for bound in (bounds.at_least, bounds.above, bounds.at_most, bounds.below))


def _interval(bounds: Limits) -> str:
    return bounds.interval().replace("e-0", "e-")


def _default(row: Parameter, language: str) -> str:
    if row.required:
        return _REQUIRED.say(language)
    if row.name in DERIVED:
        return _AS.say(language, name=DERIVED[row.name])
    value = effective_defaults().get(row.name)
    return "" if value is None else _shown(value)


def _defaults(language: str) -> Iterator[str]:
    own = {
        name: {**defaults(name), **{to: _AS.say(language, name=of) for to, of in surface.derived.items()}}
        for name, surface in SURFACES.items()
        if name != NATIVE
    }
    named = [row for row in PARAMETERS if any(row.name in values for values in own.values())]
    titles = [_title(name, language) for name in own]
    rows = [[f"`{row.name}`", *(_shown(values.get(row.name, "")) for values in own.values())] for row in named]
    return _markdown([_COLUMNS[0].say(language), *titles], rows)


def _ranges(language: str) -> Iterator[str]:
    own = {name: surface.ranges for name, surface in SURFACES.items() if surface.ranges}
    named = [row for row in PARAMETERS if any(row.name in limits for limits in own.values())]
    rows = [[f"`{row.name}`", *(_range(limits.get(row.name)) for limits in own.values())] for row in named]
    return _markdown([_COLUMNS[0].say(language), *(_title(name, language) for name in own)], rows)


def _range(bounds: Limits | None) -> str:
    if bounds is None:
        return ""
    return _interval(bounds) if _bounded(bounds) else ", ".join(f"`{choice}`" for choice in bounds.choices)


def _presets(language: str) -> Iterator[str]:
    columns = (Text("Template", "模板"), Text("Name", "名称"), Text("Completed by", "其余默认值"), Text("Sets", "设置"))
    rows = [
        [
            f"`{PREFIX}{template.key}`",
            template.name_zh if language == CHINESE else template.name,
            _title(template.surface or NATIVE, language),
            ", ".join(f"`{name}` {_shown(value)}" for name, value in _sets(template)),
        ]
        for template in BUILTIN
    ]
    return _markdown([column.say(language) for column in columns], rows)


def _sets(template: Builtin) -> Iterator[tuple[str, Any]]:
    yield from _leaves(template.base)
    yield from template.parameters.items()


def _leaves(message: Message) -> Iterator[tuple[str, Any]]:
    for field, value in message.ListFields():
        if isinstance(value, Message):
            yield from _leaves(value)
        else:
            yield field.name, list(value) if field.is_repeated else value


def _title(surface: str, language: str) -> str:
    return SURFACES[surface].title_zh if language == CHINESE else SURFACES[surface].title_en


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _scientific(value) if 0 < value < 1e-3 else f"{value:.15g}"
    return str(value)


def _scientific(value: float) -> str:
    """As the documents write small numbers, for example 2e-4."""
    mantissa, exponent = f"{value:.14e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _markdown(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    names = list(columns)
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _say(text: Text | str, language: str) -> str:
    return text if isinstance(text, str) else text.say(language)


def main() -> int:
    """Writes the pages, or says which are stale."""
    stale = [(path, text) for path, text in pages() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path, _ in stale:
            print(f"{path.relative_to(DOCS.parent)} is not what the table says; run make docs", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale:
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
