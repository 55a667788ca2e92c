"""Charts as inline SVG: lines and histograms. The style sheet sets colours and font sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from clipcap.runtime.html import Markup, join, tag, text

WIDTH, HEIGHT = 400, 240  # units of the drawing, about pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 388, 14, 196  # the plane of the data
COLOURS = 6  # of series in style.css; a seventh begins anew
MAX_LENGTHS, MAX_BINS = 40, 24  # bins of whole numbers, and of others


@dataclass(frozen=True)
class Line:
    """A curve: its points from left to right, the number of its colour."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False

    @property
    def style(self) -> str:
        """Its classes in the style sheet."""
        return f"line s{self.colour % COLOURS}{' dashed' if self.dashed else ''}"


@dataclass(frozen=True)
class Bars:
    """The heights of a histogram. `colour` None: grey, for the references."""

    label: str
    heights: Sequence[float]
    colour: int | None

    @property
    def style(self) -> str:
        """Its classes in the style sheet."""
        return "bars reference" if self.colour is None else f"bars s{self.colour % COLOURS}"


@dataclass(frozen=True)
class Axis:
    """Maps `low` to `start` and `high` to `end`, with marks at `ticks`."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        """Where a value lies in the drawing."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def round_steps(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose `low` to `high` in about `most` steps."""
    if high - low <= max(1e-12, 1e-6 * max(abs(low), abs(high))):  # one value: in the middle, with 0 at the bottom
        low, high = (low - abs(low) / 2, low + abs(low) / 2) if abs(low) > 1e-9 else (0.0, 1.0)
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor * most >= (high - low) * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [count * step for count in range(first, max(last, first + 1) + 1)]


def bin_edges(values: Sequence[float], whole: bool = False) -> list[float]:
    """The edges of equal bins around values; for whole numbers, a bin is centred on one number or covers several."""
    low, high = min(values), max(values)
    if whole:
        width = math.ceil((high - low + 1) / MAX_LENGTHS)
        return [low - 0.5 + width * count for count in range(math.ceil((high - low + 1) / width) + 1)]
    return round_steps(low, high, MAX_BINS)


def shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """The share of the values in each bin; the last bin holds its right edge too."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        place = int((value - edges[0]) / (edges[1] - edges[0]) + 1e-9)
        counts[min(place, len(counts) - 1)] += 1
    return [count / max(1, len(values)) for count in counts]


def line_chart(label: str, lines: Sequence[Line], x_label: str, from_zero: bool = False) -> Markup:
    """Curves over whole numbers, such as epochs; `label` describes the chart to screen readers."""
    points = [point for line in lines for point in line.points]
    x_values, y_values = zip(*points, strict=True)
    x_ticks = round_steps(min(x_values), max(x_values), 6, whole=True)
    x_axis = Axis(min(x_values), max(max(x_values), min(x_values) + 1), LEFT, RIGHT, x_ticks)
    y_axis = _upward(round_steps(0.0 if from_zero else min(y_values), max(y_values), 4))
    drawn = []
    for line in lines:
        places = [(f"{x_axis(x):.1f}", f"{y_axis(y):.1f}") for x, y in line.points]
        drawn.append(tag("path", d="M" + "L".join(f"{x} {y}" for x, y in places), class_=line.style))
        for (x, y), (left, top) in zip(line.points, places, strict=True):
            tip = tag("title", f"{line.label}, {x_label} {x:g}: {y:.4g}")
            drawn.append(tag("circle", tip, cx=left, cy=top, r=3, class_=line.style))
    return _drawing(label, x_axis, y_axis, drawn, x_label)


def histogram(
    label: str,
    edges: Sequence[float],
    series: Sequence[Bars],
    x_label: str,
    whole: bool = False,
    mark: float | None = None,
) -> Markup:
    """Shares of values in bins, one outline for each series; `mark` sets a line at a value."""
    x_axis = Axis(edges[0], edges[-1], LEFT, RIGHT, round_steps(edges[0], edges[-1], 6, whole))
    y_axis = _upward(round_steps(0, max(max(bars.heights) for bars in series), 4))
    floor = y_axis(0)
    drawn = []
    for bars in series:
        steps = "".join(
            f"V{y_axis(height):.1f}H{x_axis(right):.1f}"
            for height, right in zip(bars.heights, edges[1:], strict=True)
        )
        drawn.append(tag("path", d=f"M{LEFT} {floor:.1f}{steps}V{floor:.1f}Z", class_=bars.style))
    if mark is not None:
        drawn.append(tag("path", d=f"M{x_axis(mark):.1f} {TOP}V{floor:.1f}", class_="mark"))
    drawn += _tips(edges, series, x_axis, whole)
    return _drawing(label, x_axis, y_axis, drawn, x_label, percent=True)


def legend(entries: Iterable[Line | Bars]) -> Markup:
    """A sample of each line or bar with its name."""
    items = []
    for entry in entries:
        sample = tag("path", d="M1 6H21" if isinstance(entry, Line) else "M1 1H21V11H1Z", class_=entry.style)
        items.append(tag("li", tag("svg", sample, viewBox="0 0 22 12", aria_hidden="true"), tag("bdi", entry.label)))
    return tag("ul", *items, class_="legend")


def _tips(edges: Sequence[float], series: Sequence[Bars], x_axis: Axis, whole: bool) -> list[Markup]:
    """Invisible bars over the bins, whose tooltips show the numbers."""
    tips = []
    for place, (left, right) in enumerate(pairwise(edges)):
        first, last = (left + 0.5, right - 0.5) if whole else (left, right)
        name = f"{first:g}" if first == last else f"{first:.4g} to {last:.4g}"
        tip = "; ".join(f"{bars.label}: {bars.heights[place]:.1%}" for bars in series)
        box = {"x": f"{x_axis(left):.1f}", "width": f"{x_axis(right) - x_axis(left):.1f}"}
        tips.append(tag("rect", tag("title", f"{name}: {tip}"), y=TOP, height=BOTTOM - TOP, class_="tip", **box))
    return tips


def _upward(ticks: Sequence[float]) -> Axis:
    return Axis(ticks[0], ticks[-1], BOTTOM, TOP, ticks)


def _drawing(
    label: str, x_axis: Axis, y_axis: Axis, drawn: Sequence[Markup], x_label: str, percent: bool = False
) -> Markup:
    parts = []
    for tick, name in _label_ticks(y_axis.ticks, percent):
        y = f"{y_axis(tick):.1f}"
        parts.append(tag("path", d=f"M{LEFT} {y}H{RIGHT}", class_="grid" if tick != y_axis.low else "base"))
        parts.append(tag("text", name, x=LEFT - 8, y=y, dy="0.35em", text_anchor="end"))
    for tick, name in _label_ticks(x_axis.ticks):
        if x_axis.low <= tick <= x_axis.high:
            parts.append(tag("text", name, x=f"{x_axis(tick):.1f}", y=BOTTOM + 18, text_anchor="middle"))
    parts.append(tag("text", x_label, x=(LEFT + RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle", class_="axis"))
    return tag("svg", join(parts), *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=text(label))


def _label_ticks(ticks: Sequence[float], percent: bool = False) -> list[tuple[float, str]]:
    """Ticks with their labels, with enough digits to distinguish them."""
    scale, unit = (100, " %") if percent else (1, "")
    step = (ticks[1] - ticks[0]) * scale
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(tick, f"{tick * scale:,.{digits}f}{unit}" if digits < 5 else f"{tick:.3g}") for tick in ticks]
