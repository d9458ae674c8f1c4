"""Charts of a report show what differs (M15)."""

import re

from eval_service.report.charts import Bar, bars


def widths(drawn: str) -> list[float]:
    return [float(width) for width in re.findall(r'<rect[^>]* width="([0-9.]+)"', drawn)]


def test_bars_are_as_long_as_their_values() -> None:
    first, second = widths(bars("accuracy", [Bar("1", 0.8, 0.7, 0.9), Bar("2", 0.4, 0.3, 0.5)]))
    assert abs(first - 2 * second) < 0.2


def test_a_base_model_that_is_far_off_hides_no_difference_between_checkpoints() -> None:
    found = [Bar("base", 2000.0, 1900.0, 2100.0), Bar("1", 8.0, 7.0, 9.0), Bar("2", 2.0, 1.9, 2.1)]
    base, first, second = widths(bars("perplexity", found, logarithmic=True))
    assert base > first
    assert abs(first - 3 * second) < 0.2
    assert widths(bars("perplexity", [Bar("1", 1.0, 1.0, 1.0)], logarithmic=True)) == [1.0]
