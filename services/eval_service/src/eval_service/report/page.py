"""The report as one page of HTML that needs nothing else and runs no script; everything from data is escaped."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from eval_service.report.charts import Bar, bars

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light dark;--line:#8884;--accent:#2563eb;--soft:#94a3b8}
body{font:15px/1.5 system-ui,"PingFang SC","Microsoft YaHei",sans-serif;max-width:1100px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem;margin:1rem 0 .2rem}
table{border-collapse:collapse;width:100%}th,td{border:1px solid var(--line);padding:.35rem .6rem;text-align:right}
th:first-child,td:first-child{text-align:left}td.text{text-align:left;white-space:pre-wrap;vertical-align:top;
overflow-wrap:anywhere}small{color:#888}.advice{border-left:4px solid var(--accent);padding:.3rem 1rem}
.scroll{overflow-x:auto}svg{width:100%;max-width:700px;font-size:12px}svg text{fill:currentColor}
.axis,.range{stroke:currentColor;stroke-width:1;fill:none}.bar{fill:#60a5fa}.marked{fill:var(--accent)}
.dimmed{fill:var(--soft)}details{margin:.4rem 0}summary{cursor:pointer;overflow-wrap:anywhere}
tr.chosen{font-weight:600}
"""
LONGEST = 20_000
# Of a base model often hundreds of times that of what was trained.
LOGARITHMIC = ("perplexity",)


def page(content: Mapping[str, Any]) -> str:
    """The whole page. content is that of report.json."""
    title = f"Evaluation 评估报告: {content.get('name') or content.get('source_name') or ''}"
    body = [
        f"<h1>{_text(title)}</h1>",
        _facts(content),
        _advice(content),
        "<h2>Scores 评分</h2>",
        _scores(content),
        "<h2>Charts 图表</h2>",
        *_charts(content),
        *_matrices(content),
        "<h2>Samples 样本对比</h2>",
        *_samples(content),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>"
    )


def _text(value: Any) -> str:
    text = str(value)
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...", quote=True)


def _facts(content: Mapping[str, Any]) -> str:
    settings = content["settings"]
    sampling = settings["sampling"]
    facts = {
        "Task 任务": content.get("source_name", ""),
        "Base model 基础模型": content.get("base_model", ""),
        "Data 数据": f"{content['samples']} / {content['rows']} rows ({content['split']})",
        "Created 创建时间": content["create_time"],
    }
    if content["objective"] == "SUPERVISED":  # nothing is generated elsewhere
        facts["Generation 生成"] = (
            f"temperature {sampling['temperature']}, top_k {sampling['top_k']}, top_p {sampling['top_p']}, repetition "
            f"{sampling['repetition_penalty']}, seed {sampling['seed']}, {_length(settings)} tokens"
        )
        facts["Embeddings 句向量"] = settings["embedding_model"] or "-"
    rows = "".join(
        f"<tr><th>{_text(name)}</th><td class='text'>{_text(value)}</td></tr>" for name, value in facts.items()
    )
    return f"<table>{rows}</table>"


def _length(settings: Mapping[str, Any]) -> str:
    least, most = settings["least_max_tokens"], settings["effective_max_tokens"]
    return str(most) if least == most else f"{least} - {most}"


def _advice(content: Mapping[str, Any]) -> str:
    advice = content["recommendation"]
    return (
        "<h2>Recommendation 推荐</h2>"
        f"<div class='advice'><p>{_text(advice['text'])}</p><p lang='zh'>{_text(advice['text_zh'])}</p></div>"
    )


def _label(item: Mapping[str, Any]) -> str:
    return "base 基础模型" if item["base_model"] else f"{item['step']}"


def _scores(content: Mapping[str, Any]) -> str:
    """A line for each checkpoint, a column for each score."""
    heads = [f"{_text(score['name'])}<br><small>{_text(score['name_zh'])}</small>" for score in content["scores"]]
    suites = sorted({name for item in content["checkpoints"] for name in item["suites"]})
    heads = ["Checkpoint<br><small>检查点</small>", "total<br><small>综合得分</small>", *heads, *map(_text, suites)]
    lines = []
    for item in content["checkpoints"]:
        cells = [_text(_label(item)), _cell(item["total"], item["total_low"], item["total_high"], _band(item))]
        cells += [_cell(value["value"], value["low"], value["high"]) for value in item["values"]]
        cells += [_cell(item["suites"].get(name)) for name in suites]
        chosen = not item["base_model"] and item["step"] == content["recommendation"]["step"]
        lines.append(_line(cells, "chosen" if chosen else ""))
    header = "".join(f"<th>{head}</th>" for head in heads)
    note = "<p><small>In brackets: 95 % confidence interval over samples. 括号内为样本的 95 % 置信区间。</small></p>"
    return f"<div class='scroll'><table><tr>{header}</tr>{''.join(lines)}</table></div>{note}"


def _band(item: Mapping[str, Any]) -> str:
    return f"{item['band']} {item['band_zh']}".strip()


def _cell(value: float | None, low: float | None = None, high: float | None = None, note: str = "") -> str:
    if value is None:
        return "-"
    words = f"{value:.4g}"
    if low is not None and high is not None:
        words += f"<br><small>[{low:.4g}, {high:.4g}]</small>"
    return f"{words}<br><small>{_text(note)}</small>" if note else words


def _line(cells: Iterable[str], kind: str = "") -> str:
    return f"<tr class='{kind}'>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _charts(content: Mapping[str, Any]) -> Iterable[str]:
    chosen = content["recommendation"]["step"]
    titles = [("total", "综合得分")] + [(score["name"], score["name_zh"]) for score in content["scores"]]
    for name, name_zh in titles:
        found = []
        for item in content["checkpoints"]:
            value, low, high = _values(item, name)
            if value is not None:
                if low is None or high is None:  # not known, which is no reason to hide the value
                    low = high = value
                marked = not item["base_model"] and item["step"] == chosen
                found.append(Bar(_label(item), value, low, high, marked, item["base_model"]))
        if found:
            logarithmic = name in LOGARITHMIC
            note = " <small>logarithmic from 1 对数刻度，自 1 起</small>" if logarithmic else ""
            yield f"<h3>{_text(name)} {_text(name_zh)}{note}</h3>{bars(name, found, logarithmic=logarithmic)}"


def _values(item: Mapping[str, Any], name: str) -> tuple[float | None, float | None, float | None]:
    if name == "total":
        return item["total"], item["total_low"], item["total_high"]
    found: dict[str, float | None] = next((value for value in item["values"] if value["name"] == name), {})
    return found.get("value"), found.get("low"), found.get("high")


def _matrices(content: Mapping[str, Any]) -> Iterable[str]:
    """Confusion matrices: rows are true classes, columns those that were told."""
    found = [item for item in content["checkpoints"] if "confusion" in item]
    if found:
        yield "<h2>Confusion matrices 混淆矩阵</h2>"
        yield "<p><small>Rows: true class 真实类别; columns: told class 预测类别</small></p>"
    for item in found:
        labels = item["confusion"]["labels"]
        header = "".join(f"<th>{_text(label)}</th>" for label in ["", *labels])
        lines = [
            _line([_text(label), *map(str, counts)])
            for label, counts in zip(labels, item["confusion"]["matrix"], strict=True)
        ]
        table = f"<table><tr>{header}</tr>{''.join(lines)}</table>"
        yield f"<h3>{_text(_label(item))}</h3><div class='scroll'>{table}</div>"


def _samples(content: Mapping[str, Any]) -> Iterable[str]:
    """Each sample with the answers side by side."""
    for number, row in enumerate(content["rows_scored"]):
        heads = ["Expected 期望回答", *(_label(result) for result in row["results"])]
        texts = [row["expected"], *(result["answer"] for result in row["results"])]
        notes = ["", *(_notes(result["scores"]) for result in row["results"])]
        header = "".join(f"<th>{_text(head)}</th>" for head in heads)
        cells = "".join(f"<td class='text'>{_text(text)}</td>" for text in texts)
        lines = "".join(f"<td><small>{_text(note)}</small></td>" for note in notes)
        table = f"<div class='scroll'><table><tr>{header}</tr><tr>{cells}</tr><tr>{lines}</tr></table></div>"
        opened = " open" if number < 3 else ""
        summary = f"{row['row']}. {_text(row['text'][:500])}"
        yield f"<details{opened}><summary>{summary}</summary>{table}</details>"


def _notes(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items() if value is not None)
