"""Evaluations of a tiny model from job.json to the report (T26, F40, C36, M15)."""

import csv
import json
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional

from eval_service.evaluations import scored_by
from eval_service.recipes import scorer
from eval_service.recipes.evaluation import evaluate
from eval_service.recipes.progress import Stalled
from eval_service.recipes.samples import NothingHeldOut
from eval_service.scoring.generation import write_answers
from modelkit import scratch
from modelkit.chat import IGNORED
from modelkit.datasets import JsonlDataset, Reading, scan
from modelkit.datasets.splitting import split
from modelkit.encoders import encoder_for
from modelkit.loading import load_config, load_model, load_tokenizer
from tests.support.models import make_for_plain_text
from workerkit.child.stopping import StopRequest

from .conftest import LABELS, Bench, Recorder, adapter


def plain_perplexity(model_dir: Path, train: Path, checkpoint: Path | None) -> float:
    """Of the rows that the training holds out, one after the other, with PEFT and all logits."""
    config: Any = load_config(model_dir)
    model: Any = load_model(model_dir, dtype=torch.float32, config=config)
    tokenizer = load_tokenizer(model_dir, config)
    report = scan(train)
    rows = JsonlDataset(report)
    encoder = encoder_for(report, tokenizer, config, max_length=128)
    if checkpoint:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names within transformers that PEFT still uses
            model = PeftModel.from_pretrained(model, str(checkpoint))
    model.eval()
    total, tokens = 0.0, 0
    for row in encoder.encode([rows[int(at)] for at in split(len(rows), 0.4, 42).held_out]):
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        labels = torch.from_numpy(row.labels.astype(np.int64))[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        tokens += int((labels != IGNORED).sum())
    return float(np.exp(total / tokens))


def told_before(events: Recorder, event: dict[str, Any]) -> dict[str, Any]:
    """The last progress before an event."""
    earlier = events.events[: events.events.index(event)]
    return next(item for item in reversed(earlier) if item["type"] == "progress")


def values(item: dict[str, Any]) -> dict[str, float]:
    return {value["name"]: value["value"] for value in item["values"]}


def test_perplexity_is_that_of_a_plain_computation_and_the_base_comes_back(
    bench: Bench, checkpoints: list[dict[str, Any]]
) -> None:
    job = bench.job(candidates=checkpoints, include_base_model=True, scores=["perplexity"])
    events = bench.run(job)
    report = bench.report(job)
    assert [item["step"] for item in report["checkpoints"]] == [0, 10, 20]
    assert [item["base_model"] for item in report["checkpoints"]] == [True, False, False]
    paths = [None, *(Path(item["directory"]) for item in checkpoints)]
    for item, path in zip(report["checkpoints"], paths, strict=True):
        assert values(item)["perplexity"] == pytest.approx(
            plain_perplexity(bench.model_dir, bench.train_file, path), rel=1e-4
        )
    found = {event["step"]: event["values"] for event in events.of("metrics") if "perplexity" in event["values"]}
    assert found.keys() == {0, 10, 20}
    assert events.events[-1]["type"] == "done"


def test_all_scores_of_answers_and_the_files_of_the_report(bench: Bench, checkpoints: list[dict[str, Any]]) -> None:
    job = bench.job(candidates=checkpoints, include_base_model=True, titles={"name": "<b>evil</b>"})
    events = bench.run(job)
    report = bench.report(job)
    names = {"perplexity", "semantic_similarity", "coherence", "coverage", "exact_match", "token_f1"}
    assert all(values(item).keys() == names for item in report["checkpoints"])
    assert all(value["low"] <= value["value"] <= value["high"] for value in report["checkpoints"][0]["values"])
    assert report["samples"] == 9
    assert report["split"] == "validation"
    assert sum(report["shares"].values()) == pytest.approx(1)
    assert {path.name for path in job.output_dir.iterdir()} == {
        "report.json",
        "report.csv",
        "report.html",
        "samples.csv",
        "summary.json",
    }
    stored = (job.output_dir / "summary.json").read_bytes()
    summary = json.loads(stored)
    assert "rows_scored" not in summary
    assert [item["values"] for item in summary["checkpoints"]] == [item["values"] for item in report["checkpoints"]]
    told = scored_by(stored)
    assert (told.samples, told.recommended_step) == (9, report["recommendation"]["step"])
    for scored, item in zip(told.checkpoints, report["checkpoints"], strict=True):
        assert (scored.total, scored.total_low, scored.total_high, scored.band) == tuple(
            item[name] for name in ("total", "total_low", "total_high", "band")
        )
        assert scored.total_low <= scored.total <= scored.total_high
    lines = list(csv.DictReader((job.output_dir / "report.csv").read_text("utf-8-sig").splitlines()))
    assert len(lines) == 3 * (len(names) + 1)
    page = (job.output_dir / "report.html").read_text()
    assert "<b>evil" not in page
    assert "<script" not in page
    assert "语义相似度" in page
    assert "semantic_similarity" in page
    steps = [event["step"] for event in events.of("progress")]
    assert steps == sorted(steps)
    assert events.of("started")[0]["total_steps"] == 100
    phases = [event["phase"] for event in events.of("phase")]
    assert phases[-2:] == ["comparing answers", "writing the report"]
    reached = [told_before(events, event)["step"] for event in events.of("phase")[-2:]]
    assert 0 < reached[0] < reached[1] < 100, "what follows is work too"


def test_the_same_job_gives_the_same_answers_in_whatever_order(bench: Bench, checkpoints: list[dict[str, Any]]) -> None:
    both = bench.job(candidates=checkpoints, scores=["token_f1"])
    one = bench.job(candidates=checkpoints[1:], scores=["token_f1"])
    bench.run(both)
    bench.run(one)
    first = [row["results"][1]["answer"] for row in bench.report(both)["rows_scored"]]
    assert first == [row["results"][0]["answer"] for row in bench.report(one)["rows_scored"]]
    assert any(first)


def test_a_stop_is_heeded_between_batches_and_leaves_nothing(bench: Bench, checkpoints: list[dict[str, Any]]) -> None:
    stop = StopRequest()

    def watch(event: dict[str, Any]) -> None:
        stop.requested |= event["type"] == "metrics"

    job = bench.job(candidates=checkpoints)
    events = bench.run(job, watch, stop)
    assert events.events[-1]["type"] == "stopped"
    assert not job.output_dir.exists()


@pytest.mark.parametrize("step", ["suites.run", "recipes.evaluation.recommend", "recipes.evaluation.write_report"])
def test_a_long_silent_step_gives_signs_of_life(
    bench: Bench, checkpoints: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The step lasts until some have come; the answers of suites are left empty."""
    monkeypatch.setattr("workerkit.child.heartbeat.BEAT_SECONDS", 0.001)
    module, name = f"eval_service.{step}".rsplit(".", 1)
    plain = getattr(import_module(module), name)
    alive = threading.Event()

    def watch(event: dict[str, Any]) -> None:
        if threading.current_thread() is not threading.main_thread():
            alive.set()

    def slow(*given: Any, **named: Any) -> Any:
        alive.clear()
        assert alive.wait(timeout=30)
        return {} if name == "run" else plain(*given, **named)

    monkeypatch.setattr(f"{module}.{name}", slow)
    job = bench.job(candidates=checkpoints, scores=["token_f1"], suites=["sums"] if name == "run" else [])
    events = bench.run(job, watch)
    steps = [event["step"] for event in events.of("progress")]
    assert steps == sorted(steps)
    assert events.events[-1]["type"] == "done"


def test_a_suite_that_hangs_is_ended(
    bench: Bench, checkpoints: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take longer than its limit as long as it asks the model something."""
    monkeypatch.setattr("workerkit.child.heartbeat.BEAT_SECONDS", 0.001)
    alive = threading.Event()

    def watch(event: dict[str, Any]) -> None:
        if threading.current_thread() is not threading.main_thread():
            alive.set()

    def run(names: Sequence[str], model: Any, tokenizer: Any, between: Callable[[], None]) -> dict[str, float]:
        end = time.monotonic() + 3 * limit
        while time.monotonic() < end:
            between()
            alive.clear()
            assert alive.wait(timeout=30)
        phases.append("asked")
        threading.Event().wait()
        raise AssertionError("it went on")

    limit, phases = 0.1, list[str]()
    monkeypatch.setattr("eval_service.suites.run", run)
    job = bench.job(candidates=checkpoints, scores=["token_f1"], suites=["sums"], suite_stall_seconds=limit)
    with pytest.raises(Stalled, match=r"nothing for 0.1 s while it ran sums.*TUNESMITH_SUITE_STALL_SECONDS") as caught:
        bench.run(job, watch)
    assert phases == ["asked"], "it was ended while it asked"
    assert not caught.value.retryable
    assert not job.output_dir.exists()


@pytest.mark.parametrize("phase", ["comparing answers", "writing the report"])
def test_a_stop_is_heeded_to_the_end(bench: Bench, checkpoints: list[dict[str, Any]], phase: str) -> None:
    stop = StopRequest()

    def watch(event: dict[str, Any]) -> None:
        stop.requested |= event["type"] == "phase" and event["phase"] == phase

    job = bench.job(candidates=checkpoints, scores=["semantic_similarity"])
    events = bench.run(job, watch, stop)
    assert events.events[-1]["type"] == "stopped"
    assert not job.output_dir.exists()


def test_a_score_without_an_interval_is_drawn(bench: Bench, checkpoints: list[dict[str, Any]]) -> None:
    """As perplexity of one sample is, which nothing is known of beyond its value."""
    job = bench.job(candidates=checkpoints, scores=["perplexity"], choice={"ratio": 0.01, "least": 1, "most": 1})
    bench.run(job)
    for item in bench.report(job)["checkpoints"]:
        (value,) = item["values"]
        assert (value["samples"], value["low"], value["high"]) == (1, None, None)
    drawing = (
        (job.output_dir / "report.html").read_text().partition('aria-label="perplexity"')[2].partition("</svg>")[0]
    )
    assert drawing.count("<rect") == len(checkpoints)


def test_a_classifier_is_scored_by_its_classes(bench: Bench, tmp_path: Path) -> None:
    data = tmp_path / "classes.jsonl"
    rows = [{"text": f"the thing number {n}", "label": LABELS[n % 3]} for n in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = adapter(bench.model_dir, tmp_path / "classifier", seed=3, labels=LABELS)
    job = bench.job(
        candidates=[{"step": 5, "directory": str(folder)}],
        train_file=str(data),
        own_dataset=True,
        learnt={"objective": "CLASSIFICATION"},
        choice={"ratio": 1.0, "most": 100},
    )
    bench.run(job)
    item = bench.report(job)["checkpoints"][0]
    matrix = np.array(item["confusion"]["matrix"])
    assert matrix.sum() == 30
    assert values(item)["accuracy"] == pytest.approx(matrix.trace() / 30)
    assert values(item)["confusion"] == pytest.approx(1 - matrix.trace() / 30)
    either = matrix.sum(0) + matrix.sum(1)
    assert values(item)["f1"] == pytest.approx((2 * matrix.diagonal()[either > 0] / either[either > 0]).mean())


def test_whole_models_take_the_place_of_each_other(bench: Bench, tmp_path: Path) -> None:
    """A full training's checkpoints are scored by what they weigh, whichever was there before."""
    candidates = []
    for step in (1, 2):
        model: Any = load_model(bench.model_dir, dtype=torch.float32)
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / f"whole-{step}")
        candidates.append({"step": step, "directory": str(tmp_path / f"whole-{step}")})
    job = bench.job(candidates=candidates, scores=["perplexity"])
    again = bench.job(candidates=candidates[::-1], scores=["perplexity"])
    bench.run(job)
    bench.run(again)
    found = {item["step"]: values(item) for item in bench.report(job)["checkpoints"]}
    assert found == {item["step"]: values(item) for item in bench.report(again)["checkpoints"]}
    assert found[1] != found[2]


def test_without_held_out_rows_it_is_said_what_to_do(bench: Bench, checkpoints: list[dict[str, Any]]) -> None:
    job = bench.job(candidates=checkpoints, learnt={"eval_ratio": 0.0})
    with pytest.raises(NothingHeldOut, match="name a dataset"):
        evaluate(job, Recorder(), StopRequest())


def test_changed_data_is_said_loudly(bench: Bench, checkpoints: list[dict[str, Any]]) -> None:
    job = bench.job(candidates=checkpoints[:1], scores=["perplexity"], dataset_sha256="0" * 64)
    assert "has changed since it was trained" in bench.run(job).text()


def test_documents_are_scored_in_windows_by_perplexity_alone(bench: Bench, tmp_path: Path) -> None:
    data = tmp_path / "documents.jsonl"
    texts = [f"Document {n} tells of many things. " * (3 + 9 * (n % 3)) for n in range(12)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    learnt = {"objective": "PRETRAINING", "eval_ratio": 0.0, "max_seq_length": 64}
    job = bench.job(include_base_model=True, train_file=str(data), own_dataset=True, learnt=learnt)
    bench.run(job)
    report = bench.report(job)
    assert (report["split"], report["rows"], report["samples"]) == ("dataset", 12, 12)
    (value,) = report["checkpoints"][0]["values"]
    assert (value["name"], value["samples"]) == ("perplexity", 12)
    config: Any = load_config(bench.model_dir)
    model: Any = load_model(bench.model_dir, dtype=torch.float32, config=config)
    encoder = encoder_for(
        scan(data, Reading("PRETRAINING")), load_tokenizer(bench.model_dir, config), config, max_length=64
    )
    total, tokens = 0.0, 0
    for row in encoder.encode(texts):
        for start in range(0, len(row.input_ids), 64):
            ids = torch.from_numpy(row.input_ids[start : start + 64].astype(np.int64))[None]
            with torch.no_grad():
                total += float(functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
    assert value["value"] == pytest.approx(np.exp(total / tokens), rel=1e-4)


def test_without_an_embedding_model_the_base_model_stands_in(
    bench: Bench, checkpoints: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval_service.recipes.evaluation.installed_directory", lambda: None)
    job = bench.job(candidates=checkpoints, scores=["semantic_similarity"])
    assert "no sentence-embedding model is installed" in bench.run(job).text()
    assert bench.report(job)["settings"]["embedding_model"] == "base model's hidden states"


def test_only_the_test_rows_are_scored_where_there_are_any(bench: Bench, checkpoints: list[dict[str, Any]]) -> None:
    """Exactly those that the training kept for a test."""
    job = bench.job(candidates=checkpoints[:1], scores=["perplexity"], learnt={"eval_ratio": 0.2, "test_ratio": 0.3})
    bench.run(job)
    report = bench.report(job)
    assert report["split"] == "test"
    kept = split(22, 0.2, 42, 0.3).test
    assert [row["row"] for row in report["rows_scored"]] == [int(row) + 1 for row in kept]


def test_long_answers_leave_the_question_whole_and_end_where_the_model_ends(
    bench: Bench, tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    room: list[int] = []

    def written(model: Any, prompts: Any, *rest: Any) -> Any:
        found = write_answers(model, prompts, *rest)
        read.extend(len(prompt) + len(answer) for prompt, answer in zip(prompts, found, strict=True))
        room.extend(context - len(prompt) for prompt in prompts)
        return found

    monkeypatch.setattr(scorer, "write_answers", written)
    context = 80
    bench.model_dir = scratch.build(
        tmp_path / "short", hidden_size=32, layers=2, vocab_size=320, corpus=dataset, max_length=context
    ).directory
    made = adapter(bench.model_dir, tmp_path / "checkpoint-10", seed=10)
    answers, limits, warned = [], [], []
    for most in (8, 100_000):
        job = bench.job(
            candidates=[{"step": 10, "directory": str(made)}],
            scores=["token_f1"],
            answering={"max_tokens": most, "sampling": {"temperature": 0.0}},
        )
        told = bench.run(job).text()
        report = bench.report(job)
        answers.append([row["results"][0]["answer"] for row in report["rows_scored"]])
        limits.append(report["settings"]["least_max_tokens"])
        warned.append(f"answers have room for fewer than {most} tokens, one for {limits[-1]}:" in told)
    assert len(set(answers[0])) > 1, "questions decide about answers"
    assert all(long.startswith(short) for short, long in zip(*answers, strict=True))
    assert max(read) == context
    assert limits[1] == min(room)
    assert limits[0] == 8
    assert 8 < limits[1] < context
    assert warned == [False, True]


def test_answers_end_where_the_template_ends_replies(
    bench: Bench, tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model, made for plain text, names another end alone."""
    ends: list[frozenset[int]] = []

    def noted(model: Any, prompts: Any, writing: Any, *rest: Any) -> Any:
        ends.append(writing.ends)
        return write_answers(model, prompts, writing, *rest)

    monkeypatch.setattr(scorer, "write_answers", noted)
    bench.model_dir = scratch.build(
        tmp_path / "plain", hidden_size=32, layers=1, vocab_size=320, corpus=dataset
    ).directory
    known = frozenset(make_for_plain_text(bench.model_dir))
    made = adapter(bench.model_dir, tmp_path / "checkpoint-10", seed=10)
    job = bench.job(candidates=[{"step": 10, "directory": str(made)}], scores=["exact_match"])
    bench.run(job)
    assert ends
    assert set(ends) == {known}
