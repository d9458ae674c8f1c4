"""The content of a report as plain JSON; the other files are drawn from it.

Its form is documented in docs/evaluation.md. A reader must pass over fields that it does not know; `version` rises when
one changes its meaning.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from eval_service import scores
from eval_service.recipes.job import Job
from eval_service.recipes.samples import Samples
from eval_service.recommendation import Recommendation
from eval_service.scoring.intervals import CONFIDENCE, interval, resamples, wide_enough
from eval_service.scoring.totals import Card, least_counted, total

SCHEMA, VERSION = "tunesmith.evaluation", 1


@dataclass(frozen=True, slots=True)
class Scored:
    """A checkpoint's measurements, its answers and the classes that it told, and results of suites."""

    card: Card
    answers: Sequence[str] = ()
    classes: Sequence[int] = ()
    suites: Mapping[str, float] = field(default_factory=dict)


def content_of(
    job: Job,
    scored: Sequence[Scored],
    samples: Samples,
    *,
    shares: Mapping[str, float],
    advice: Recommendation,
    labels: Sequence[str],
    embedder: str,
    rooms: Sequence[int],
) -> dict[str, Any]:
    """Everything that is known of an evaluation; numbers that are undefined are None.

    rooms: tokens that the answers can have, fewer than the job asks for where the context of the model ends before.
    """
    names = list(scored[0].card.measurements) if scored else []
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "create_time": datetime.now(UTC).isoformat(timespec="seconds"),
        **job.titles,
        "objective": job.learnt.objective,
        "split": samples.split,
        "rows": samples.rows,
        "samples": len(samples),
        "settings": _settings(job, embedder, rooms),
        "shares": dict(shares),
        "scores": [_described(name) for name in names],
        "checkpoints": [_checkpoint(item, samples, shares, labels, job.choice.seed) for item in scored],
        "recommendation": _advice(advice),
        "rows_scored": [_row(place, scored, samples, labels) for place in range(len(samples))],
    }


def summary_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report says how the checkpoints did: no samples, matrices or comparisons, so it stays small."""
    told = ("step", "base_model", "total", "total_low", "total_high", "band", "values", "suites")
    advice = {name: value for name, value in content["recommendation"].items() if name != "comparisons"}
    return {
        "samples": content["samples"],
        "recommendation": advice,
        "checkpoints": [{name: item[name] for name in told} for item in content["checkpoints"]],
    }


def number(value: float) -> float | None:
    """A number that JSON can hold."""
    return float(value) if math.isfinite(value) else None


def _settings(job: Job, embedder: str, rooms: Sequence[int]) -> dict[str, Any]:
    return {
        "sample_ratio": job.choice.ratio,
        "min_samples": job.choice.least,
        "max_samples": job.choice.most,
        "seed": job.choice.seed,
        "max_tokens": job.answering.max_tokens,
        "effective_max_tokens": max(rooms),
        "least_max_tokens": min(rooms),
        "sampling": dict(job.answering.sampling),
        "stop": list(job.answering.stop),
        "max_seq_length": job.learnt.max_seq_length,
        "embedding_model": embedder,
        "confidence": CONFIDENCE,
    }


def _described(name: str) -> dict[str, Any]:
    known = scores.BY_NAME[name]
    return {
        "name": name,
        "name_zh": known.name_zh,
        "description": known.description,
        "higher_is_better": known.higher_is_better,
    }


def _checkpoint(
    item: Scored, samples: Samples, shares: Mapping[str, float], labels: Sequence[str], seed: int
) -> dict[str, Any]:
    card = item.card
    values = []
    for name, measurement in card.measurements.items():
        low, high = interval(measurement, seed)
        values.append(
            {
                "name": name,
                "value": number(measurement.value),
                "low": number(low),
                "high": number(high),
                "samples": measurement.counted,
            }
        )
    found = {"step": card.step, "base_model": card.base_model, "values": values, "suites": dict(item.suites)}
    if item.classes:
        found["confusion"] = {"labels": list(labels), "matrix": _confusion(samples.classes, item.classes, len(labels))}
    return found | _total(card, shares, seed)


def _total(card: Card, shares: Mapping[str, float], seed: int) -> dict[str, Any]:
    if not shares:
        return {"total": None, "total_low": None, "total_high": None, "band": "", "band_zh": ""}
    value = float(total(card, card.sums(), shares))
    first = card.measurements[next(iter(shares))]
    drawn = [
        total(card, {name: choice @ card.measurements[name].parts for name in shares}, shares)
        for choice in resamples(first, seed)
    ]
    low, high = wide_enough(np.concatenate(drawn), least_counted(shares, card))
    band, band_zh = scores.band(value)
    return {"total": value, "total_low": low, "total_high": high, "band": band, "band_zh": band_zh}


def _confusion(actual: Sequence[int], told: Sequence[int], classes: int) -> list[list[int]]:
    """Rows are true classes, columns those that were told."""
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (np.asarray(actual), np.asarray(told)), 1)
    found: list[list[int]] = matrix.tolist()
    return found


def _advice(advice: Recommendation) -> dict[str, Any]:
    return {
        "step": advice.step,
        "distinguishable": advice.distinguishable,
        "equivalent_steps": list(advice.equivalent_steps),
        "worse_than_base_steps": list(advice.worse_than_base_steps),
        "text": advice.words.en,
        "text_zh": advice.words.zh,
        "comparisons": [{**dataclasses.asdict(item), "significant": item.significant} for item in advice.comparisons],
    }


def _row(place: int, scored: Sequence[Scored], samples: Samples, labels: Sequence[str]) -> dict[str, Any]:
    """One sample: what was asked and expected, and of each checkpoint what it made of it."""
    if samples.questions:
        expected = samples.questions[place].expected
    else:
        expected = labels[samples.classes[place]] if labels and samples.classes[place] >= 0 else ""
    results = []
    for item in scored:
        answer = item.answers[place] if item.answers else labels[item.classes[place]] if item.classes else ""
        values = {
            name: number(float(measurement.of(measurement.parts[place])))
            for name, measurement in item.card.measurements.items()
            if measurement.parts.shape[1] == 2
        }
        results.append({"step": item.card.step, "base_model": item.card.base_model, "answer": answer, "scores": values})
    return {"row": samples.positions[place] + 1, "text": samples.texts[place], "expected": expected, "results": results}
