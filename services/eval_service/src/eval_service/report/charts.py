"""Charts of a report, as SVG that a page holds in itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, BAR, GAP, LEFT, RIGHT = 640, 18, 10, 130, 90


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval; marked: the one that is recommended, dimmed: the baseline."""

    label: str
    value: float
    low: float
    high: float
    marked: bool = False
    dimmed: bool = False


def bars(title: str, found: Sequence[Bar], *, logarithmic: bool = False) -> str:
    """Horizontal bars from zero with their intervals; logarithmic ones, of values from 1 up, from 1."""

    def place_of(value: float) -> float:
        return math.log(max(value, 1.0)) if logarithmic else value

    zero = 1.0 if logarithmic else 0.0
    highest = max((place_of(max(bar.value, bar.high)) for bar in found), default=0.0)
    lowest = min((place_of(min(bar.value, bar.low, zero)) for bar in found), default=0.0)
    scale = (WIDTH - LEFT - RIGHT) / ((highest - lowest) or 1.0)

    def at(value: float) -> float:
        return LEFT + (place_of(value) - lowest) * scale

    height = GAP + len(found) * (BAR + GAP)
    label = escape(title, quote=True)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg">',
        f'<line x1="{at(zero):.1f}" y1="0" x2="{at(zero):.1f}" y2="{height}" class="axis"/>',
    ]
    for place, bar in enumerate(found):
        top = GAP + place * (BAR + GAP)
        middle = top + BAR / 2
        start, end = sorted((at(zero), at(bar.value)))
        low, high = f"{at(bar.low):.1f}", f"{at(bar.high):.1f}"
        kind = "bar marked" if bar.marked else "bar dimmed" if bar.dimmed else "bar"
        parts += [
            f'<text x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{kind}" x="{start:.1f}" y="{top}" width="{max(end - start, 1):.1f}" height="{BAR}"/>',
            f'<path class="range" d="M{low} {middle}H{high}M{low} {middle - 5}v10M{high} {middle - 5}v10"/>',
            f'<text x="{max(end, at(bar.high)) + 8:.1f}" y="{middle + 4}">{bar.value:.4g}</text>',
        ]
    return "".join([*parts, "</svg>"])
