"""The child's side of data_questions: reads a question, looks at the data, writes the answer."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelkit import datasets
from modelkit.datasets import (
    PRETRAINING,
    ColumnNames,
    DataCache,
    DatasetFiles,
    DatasetReport,
    JsonlDataset,
    Reading,
)
from modelkit.errors import ModelkitError
from workerkit.launcher import EVENTS_FD_VARIABLE

QUESTION, ANSWER = "question.json", "answer.json"
WHOLE = 1 << 30  # tokens; nothing is as long


def run(folder: Path) -> int:
    """Answers the question in a folder, then says so on the event pipe."""
    question = json.loads((folder / QUESTION).read_text())
    answers = {"report": _report, "check": _check}
    try:
        answer = answers[question["question"]](question)
    except ModelkitError as error:
        answer = {"problems_found": [{"field": item.field, "message": item.message} for item in error.problems]}
    (folder / ANSWER).write_text(json.dumps(answer))
    os.write(int(os.environ[EVENTS_FD_VARIABLE]), b"{}\n")
    return 0


def _read(question: Mapping[str, Any]) -> DatasetReport:
    paths = [Path(path) if path else None for path in question["files"]]
    reading = Reading(question["objective"], ColumnNames(*question["columns"]), tuple(question["labels"]))
    assert paths[0] is not None
    return datasets.validate(DatasetFiles(paths[0], paths[1], paths[2], reading), DataCache(Path(question["cache"])))


def _encoder(question: Mapping[str, Any], report: DatasetReport, max_length: int) -> tuple[Any, Any]:
    """An encoder for the data, and its tokenizer."""
    from modelkit.encoders import encoder_for
    from modelkit.loading import load_config, load_tokenizer

    model = Path(question["model_dir"])
    config: Any = load_config(model)
    tokenizer: Any = load_tokenizer(Path(question.get("tokenizer_dir") or model), config)
    on_prompt = bool(question.get("train_on_prompt"))
    encoder = encoder_for(report.train, tokenizer, config, max_length=max_length, train_on_prompt=on_prompt)
    return encoder, tokenizer.backend_tokenizer


def _report(question: Mapping[str, Any]) -> dict[str, Any]:
    from modelkit.dataset_report import examine

    report = _read(question)
    encoder, backend = _encoder(question, report, WHOLE) if question["model_dir"] else (None, None)
    found = examine(
        report,
        encoder=encoder,
        backend=backend,
        max_length=question["max_seq_length"],
        preview_rows=question["preview_rows"],
        seconds=question["seconds"],
    )
    splits = {"train": report.train, "validation": report.validation, "test": report.test}
    return {
        "valid": report.valid,
        "format": report.format,
        "rows": {name: split.rows for name, split in splits.items() if split is not None},
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
        "exact_duplicates": found.duplicates.exact,
        "near_duplicates": found.duplicates.near,
        "duplicates": [
            *({"lines": list(lines), "exact": True} for lines in found.exact_lines),
            *({"lines": list(lines), "exact": False} for lines in found.near_lines),
        ],
        "overlapping_rows": found.overlap,
        "lengths": None if found.lengths is None else dataclasses.asdict(found.lengths),
        "samples": [[dataclasses.asdict(piece) for piece in sample] for sample in found.samples],
        "labels": report.train.labels,
        "sha256": report.train.sha256,
        "advice": list(found.advice),
    }


def _check(question: Mapping[str, Any]) -> dict[str, Any]:
    from modelkit.chat import ChatEncoder
    from modelkit.dataset_report import nothing_to_learn
    from modelkit.template_fit import template_problems

    report = _read(question)
    encoder, _ = _encoder(question, report, question["max_seq_length"])
    rows = JsonlDataset(report.train, max_rows=question["max_samples"])
    words = template_problems(encoder, rows, report.train) if isinstance(encoder, ChatEncoder) else []
    problems = [{"field": "finetune.dataset", "message": text} for text in words]
    if not problems and question["objective"] != PRETRAINING:
        length = question["max_seq_length"]
        if nothing_to_learn(rows, report.train.lengths, encoder, question["seconds"]):
            message = f"all {len(rows)} rows have their reply beyond max_seq_length ({length} tokens); raise it"
            problems.append({"field": "finetune.language_model.max_seq_length", "message": message})
    return {"problems_found": problems}
