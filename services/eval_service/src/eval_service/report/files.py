"""The files of a report, written whole or not at all."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from eval_service.report.content import summary_of
from eval_service.report.page import page

JSON, CSV, HTML, SAMPLES = "report.json", "report.csv", "report.html", "samples.csv"
SUMMARY = "summary.json"
# A spreadsheet would compute a cell that begins so.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_report(directory: Path, content: Mapping[str, Any]) -> None:
    """Writes the report and its summary into a directory, which gets its name at the end.

    Raises OSError.
    """
    staging = directory.parent / f".{directory.name}.tmp"
    staging.mkdir(parents=True, exist_ok=True)
    files = {
        JSON: orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY),
        SUMMARY: orjson.dumps(summary_of(content), option=orjson.OPT_SERIALIZE_NUMPY),
        CSV: table(CSV_HEADER, score_rows(content)),
        SAMPLES: table(SAMPLES_HEADER, sample_rows(content)),
        HTML: page(content).encode(),
    }
    for name, data in files.items():
        with (staging / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if directory.is_dir():
        directory.rmdir()
    staging.rename(directory)


CSV_HEADER = ("step", "base_model", "score", "value", "low", "high", "samples")
SAMPLES_HEADER = ("row", "step", "base_model", "text", "expected", "answer", "score", "value")


def score_rows(content: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """A row for each score of each checkpoint, the total and the suites among them."""
    for item in content["checkpoints"]:
        head = (item["step"], _yes(item["base_model"]))
        for value in item["values"]:
            yield (*head, value["name"], value["value"], value["low"], value["high"], value["samples"])
        yield (*head, "total", item["total"], item["total_low"], item["total_high"], content["samples"])
        for name, value in item["suites"].items():
            yield (*head, f"suite:{name}", value, None, None, None)


def sample_rows(content: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """A row for each score of each answer."""
    for row in content["rows_scored"]:
        for result in row["results"]:
            head = (row["row"], result["step"], _yes(result["base_model"]))
            texts = tuple(harmless(text) for text in (row["text"], row["expected"], result["answer"]))
            for name, value in result["scores"].items() or {"": None}.items():
                yield (*head, *texts, name, value)


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    """A CSV file that spreadsheets open as UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig", "replace")


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _yes(value: bool) -> str:
    return "yes" if value else "no"
