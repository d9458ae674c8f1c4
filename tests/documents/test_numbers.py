"""What the guides count up is what the code has: limits of exports, weights of scores, defaults of answers, files."""

import re
from collections.abc import Iterator

import pytest

from eval_service.generation.engine.sampling import Sampling
from eval_service.generation.requests import MAX_TOKENS
from eval_service.recipes.job import SAMPLING, Answering, Choice
from eval_service.scores import SCORES
from export_service.parity.checks import FORMS, WEIGHT_LIMITS
from modelkit.datasets.archives import GZIP, TAR, ZIP
from modelkit.datasets.splits import SUFFIXES
from scripts.check_docs import ROOT, TRANSLATED, sections


def both(page: str) -> tuple[str, str]:
    return page, TRANSLATED[page]


def rows(page: str, number: int) -> Iterator[list[str]]:
    """Cells of the rows of a table, the head left out; tables count from 0 through the whole page."""
    text = (ROOT / page).read_text()
    table = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[number]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def names(cell: str) -> list[str]:
    return re.findall(r"[\w.]+", cell)


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]


@pytest.mark.parametrize("page", both("docs/export-parity.md"))
def test_limits_of_exports(page: str) -> None:
    told = {form: cells for first, *cells in rows(page, 1) for form in names(first)}
    assert set(told) == set(FORMS)
    for form, limits in FORMS.items():
        logits, perplexity, greedy = told[form]
        assert (float(logits), float(perplexity)) == (limits.logits, limits.perplexity), form
        assert (greedy == "0") == (limits.greedy == 0), form
    weights = {form: float(limit) for first, limit in rows(page, 2) for form in names(first)}
    assert weights == WEIGHT_LIMITS


@pytest.mark.parametrize("page", both("docs/evaluation.md"))
def test_weights_of_scores_and_the_choice_of_samples(page: str) -> None:
    told = {names(cells[0])[0]: cells[-1] for cells in rows(page, 1)}
    assert set(told) == {score.name for score in SCORES}
    for score in SCORES:
        assert float(told[score.name]) == score.weight if told[score.name][0].isdigit() else score.weight == 0
    defaults = {cells[0]: cells[-1] for cells in rows(page, 0)}
    sizes = next(default for name, default in defaults.items() if "min_samples" in name)
    choice = Choice()
    assert numbers(sizes) == [choice.ratio, choice.least, choice.most]
    assert int(defaults["`seed`"]) == choice.seed
    sampling = [SAMPLING[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed")]
    assert numbers(defaults["`sampling`"]) == [*sampling, Answering().max_tokens]


@pytest.mark.parametrize("page", both("docs/http.md"))
def test_defaults_of_answers(page: str) -> None:
    (table,) = [section for section in sections(ROOT / page) if "`presence_penalty` | 0 |" in section]
    told = {}
    for first, default in re.findall(r"^\| ([^|]*) \| ([^|]*) \|", table, re.MULTILINE):
        told.update(zip(names(first), re.split(r"[,、] ?", default), strict=False))
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "seed"):
        assert float(told[name]) == getattr(Sampling(), name), name
    assert float(told["max_tokens"]) == MAX_TOKENS


@pytest.mark.parametrize("page", both("docs/guide.md"))
def test_kinds_of_files(page: str) -> None:
    """All that are read, and no others."""
    given = dict(list(rows(page, 0))[number] for number in (0, 2))
    told = {name for cell in given.values() for name in re.findall(r"`(\.[\w.]+)`", cell)}
    assert told == {*SUFFIXES, *GZIP, *ZIP, *TAR}
