"""Intervals, totals and the recommendation, on scores made for it (M15)."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eval_service import scores
from eval_service.recipes.job import Job
from eval_service.recipes.samples import Samples
from eval_service.recommendation import EXCHANGES, Recommendation, holm, recommend, swaps
from eval_service.report.content import Scored, content_of
from eval_service.scoring.intervals import BLOCK, clopper_pearson, interval
from eval_service.scoring.measurements import macro_f1, mean, perplexity
from eval_service.scoring.totals import Card, total

SHARES = {"coverage": 1.0}


def card(step: int, values: Sequence[float], *, base_model: bool = False) -> Card:
    return Card(step, {"coverage": mean("coverage", values)}, base_model)


def noisy(level: float, seed: int, samples: int = 40, noise: float = 0.02) -> list[float]:
    """Values around a level that depends on the sample, as those of checkpoints on the same samples do."""
    difficulty = np.random.default_rng(0).uniform(-0.2, 0.2, samples)
    found: list[float] = (level + difficulty + np.random.default_rng(seed).normal(0, noise, samples)).tolist()
    return found


@pytest.mark.parametrize(
    ("right", "counted", "low", "high"),
    [(8, 10, 0.4439, 0.9748), (0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (50, 100, 0.3983, 0.6017)],
)
def test_the_exact_interval_of_a_proportion(right: int, counted: int, low: float, high: float) -> None:
    """Against the tables of Clopper and Pearson."""
    assert clopper_pearson(right, counted) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    measured = mean("exact_match", [1.0] * right + [0.0] * (counted - right))
    assert interval(measured, seed=0) == clopper_pearson(right, counted)


def test_the_bootstrap_interval_is_seeded_and_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.1, 400)
    low, high = interval(mean("coverage", values.tolist()), seed=1)
    assert (low, high) == interval(mean("coverage", values.tolist()), seed=1)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.1 / math.sqrt(400), rel=0.15)
    assert low < values.mean() < high


@pytest.mark.parametrize("counted", [1, 5, 32])
def test_samples_that_are_all_alike_leave_room_for_others(counted: int) -> None:
    """The bootstrap of them has no width; a classifier that is always right is as uncertain as its accuracy."""
    labels = [number % 2 for number in range(counted)]
    unlike = 1 - 0.025 ** (1 / counted)
    assert clopper_pearson(counted, counted) == (pytest.approx(1 - unlike), 1.0)
    assert interval(macro_f1("f1", labels, labels, classes=2), seed=0) == (pytest.approx(1 - unlike), 1.0)
    middling = mean("coverage", [0.7] * counted)
    assert interval(middling, seed=0) == (pytest.approx(0.7 * (1 - unlike)), pytest.approx(0.7 + 0.3 * unlike))
    signed = mean("semantic_similarity", [1 / 3] * counted, (-1.0, 1.0))
    assert interval(signed, seed=0)[0] == pytest.approx(1 / 3 - 4 / 3 * unlike)
    assert all(map(math.isnan, interval(perplexity("perplexity", [2.0] * counted, [1] * counted), seed=0)))


def test_the_total_of_checkpoints_that_are_always_right_is_not_certain() -> None:
    labels = [0, 1] * 4
    right = {"accuracy": mean("accuracy", [1.0] * 8), "f1": macro_f1("f1", labels, labels, classes=2)}
    job = Job(Path(), Path(), Path(), Path(), ())
    samples = Samples(list(range(8)), "validation", 8, [], [], [], [], labels, ["text"] * 8)
    scored = [Scored(Card(step, right), classes=labels) for step in (10, 20)]
    shares = {"accuracy": 0.5, "f1": 0.5}
    advice = recommend([item.card for item in scored], shares)
    content = content_of(job, scored, samples, shares=shares, advice=advice, labels=["a", "b"], embedder="", rooms=[1])
    least, _ = clopper_pearson(8, 8)
    for item in content["checkpoints"]:
        assert (item["total"], item["total_high"]) == (1.0, 1.0)
        assert item["total_low"] == pytest.approx(least)
    (comparison,) = advice.comparisons
    assert comparison.low == pytest.approx(least - 1) and comparison.high == pytest.approx(1 - least)


def test_a_comparison_is_no_surer_than_the_score_with_the_fewest_samples() -> None:
    """Of what only 6 of 12 samples have, little is known, whichever of the two checkpoints lacks it."""
    whole, partly = [1.0] * 12, [1.0] * 6 + [math.nan] * 6
    unlike = 1 - 0.025 ** (1 / 6)
    for first, second in ((whole, partly), (partly, whole)):
        (comparison,) = recommend([card(10, first), card(20, second)], SHARES).comparisons
        assert comparison.low == pytest.approx(-unlike) and comparison.high == pytest.approx(unlike)


def test_perplexity_weighs_tokens_and_passes_over_samples_without() -> None:
    measured = perplexity("perplexity", [2.0, 0.0, 6.0], [1, 0, 3])
    assert measured.value == pytest.approx(math.exp(2.0))
    assert measured.counted == 2
    assert math.isnan(perplexity("perplexity", [0.0], [0]).value)


def test_macro_f1_counts_classes_that_occur() -> None:
    measured = macro_f1("f1", [0, 0, 0, 1, 1], [0, 0, 1, 1, 0], classes=4)
    assert measured.value == pytest.approx((2 * 2 / 6 + 2 * 1 / 4) / 2)
    resampled = measured.of(np.array([[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]) @ measured.parts)
    assert resampled == pytest.approx([0.8 / 2, (2 / 3) / 2])


def test_the_total_is_weighted_and_lies_between_0_and_1() -> None:
    measurements = {
        "perplexity": perplexity("perplexity", [1.0], [1]),
        "semantic_similarity": mean("semantic_similarity", [-0.5]),
        "coverage": mean("coverage", [1.0]),
    }
    shares = scores.shares(measurements, {"perplexity": 2.0, "semantic_similarity": 1.0, "coverage": 1.0})
    found = Card(1, measurements)
    assert float(total(found, found.sums(), shares)) == pytest.approx(0.5 * 0.5 + 0.25 * 0.0 + 0.25 * 1.0)
    assert scores.shares(["confusion"], {"confusion": 1.0}) == {}


@pytest.mark.parametrize(
    ("value", "name"), [(0.8, "优秀"), (0.79, "良好"), (0.6, "良好"), (0.4, "一般"), (0.39, "较差"), (0.0, "较差")]
)
def test_bands(value: float, name: str) -> None:
    assert scores.band(value)[1] == name


@pytest.mark.parametrize(("samples", "exchanges"), [(3, 8), (2000, EXCHANGES)])
def test_exchanges_come_in_blocks_that_fit_into_memory(samples: int, exchanges: int) -> None:
    blocks = swaps(samples, seed=1)
    first = next(blocks)
    sizes = [len(first), *map(len, blocks)]
    assert sum(sizes) == exchanges
    assert max(sizes) * samples <= BLOCK
    assert set(np.unique(first)) == {0.0, 1.0}
    assert next(swaps(100_000, seed=1)).size <= BLOCK


def test_holm_shares_one_error_rate() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_checkpoint_that_stands_out_is_recommended() -> None:
    cards = [card(0, noisy(0.4, 9), base_model=True), card(5, noisy(0.4, 3)), card(10, noisy(0.5, 1))]
    found = recommend([*cards, card(20, noisy(0.7, 2))], SHARES)
    assert (found.step, found.distinguishable, found.equivalent_steps) == (20, True, ())
    assert found.worse_than_base_steps == ()
    (behind,) = (item.difference for item in found.comparisons if item.against == 10)
    assert found.words.en.startswith("Checkpoint 20 is better than the others beyond chance;")
    assert f"the next best, checkpoint 10, is {behind:.2g} lower" in found.words.en
    assert f"检查点 20 显著优于其他检查点；其次是检查点 10，综合得分低 {behind:.2g}" in found.words.zh


def test_of_equals_the_earliest_is_recommended() -> None:
    cards = [card(10, noisy(0.5, 1)), card(20, noisy(0.702, 2)), card(30, noisy(0.7, 3)), card(40, noisy(0.701, 4))]
    found = recommend(cards, SHARES)
    assert found.step == 20
    assert not found.distinguishable
    best = next(item.step for item in found.comparisons)
    assert {found.step, best, *found.equivalent_steps} == {20, 30, 40}


def test_few_samples_prove_nothing() -> None:
    """With five samples the exact chance of the clearest difference is one in sixteen."""
    cards = [card(10, [0.1] * 5), card(20, [0.9] * 5)]
    found = recommend(cards, SHARES)
    assert found.comparisons[0].chance == pytest.approx(2 / 2**5)
    assert found.step == 10
    assert not found.distinguishable


def test_checkpoints_worse_than_the_base_are_named_and_never_recommended() -> None:
    cards = [card(0, noisy(0.6, 9), base_model=True), card(10, noisy(0.3, 1)), card(20, noisy(0.61, 2))]
    found = recommend(cards, SHARES)
    assert found.worse_than_base_steps == (10,)
    assert found.step == 20
    ruined = recommend([cards[0], card(10, noisy(0.3, 1)), card(20, noisy(0.2, 2))], SHARES)
    assert (ruined.step, ruined.worse_than_base_steps) == (0, (10, 20))
    assert "基础模型" in ruined.words.zh


def test_no_difference_is_found_where_there_is_none() -> None:
    """Of 200 comparisons of equals at most a few percent are called different."""

    def verdict(seed: int) -> Recommendation:
        return recommend([card(1, noisy(0.5, seed, 12)), card(2, noisy(0.5, seed + 1000, 12))], SHARES)

    assert sum(verdict(seed).distinguishable for seed in range(200)) <= 20


def test_a_comparison_can_be_ended() -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        recommend([card(10, noisy(0.5, 1)), card(20, noisy(0.6, 2))], {"coverage": 1.0}, between=stop)


def test_nothing_to_compare_by() -> None:
    assert recommend([card(1, [0.5])], {}).step == 0
    assert recommend([], SHARES).step == 0
    only = recommend([card(7, [0.5, 0.6])], SHARES)
    assert (only.step, only.distinguishable) == (7, True)
