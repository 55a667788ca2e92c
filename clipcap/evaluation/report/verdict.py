"""Which of two runs is better: the verdict in a sentence, and the differences of all scores with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from clipcap.evaluation.report.content import Difference, Interval, Run, Versus
from clipcap.evaluation.report.summary import run_label, score_value
from clipcap.runtime.html import Markup, join, phrase, tag

_WIDTH, _TALL = 240, 10  # units of the drawing of an interval
SURE = 0.05  # two-sided p-value
LESS_IS_BETTER = ("bad endings", "repeated 2-grams", "median rank", "mBLEU-4", "CHAIRi", "CHAIRs")


def verdicts(runs: Sequence[Run], versus: Sequence[Versus]) -> Markup:
    """The first run against each of the others; empty where there is nothing to compare."""
    return tag("div", *(_pair(runs, one) for one in versus), class_="verdicts") if versus else Markup()


def _pair(runs: Sequence[Run], versus: Versus) -> Markup:
    places = {run.name: place for place, run in enumerate(runs)}
    first, second = (run_label(runs, places[name]) for name in (versus.first, versus.second))
    columns = ["Score", first, second, join([first, " less ", second, ", 95 % interval"]), "p"]
    head = tag("tr", *(tag("th", column, scope="col", role="columnheader") for column in columns), role="row")
    rows = [
        _row(name, one, [run.scores.get(name) for run in (runs[places[versus.first]], runs[places[versus.second]])])
        for name, one in versus.differences.items()
    ]
    caption = tag("caption", f"Differences of {versus.first} and {versus.second}", class_="unseen")
    body = [tag("thead", head, role="rowgroup"), tag("tbody", *rows, role="rowgroup")]
    return join(
        [
            phrase("p", versus.verdict + ".", class_="verdict"),
            tag("div", tag("table", caption, *body, class_="differences", role="table"), class_="wide"),
            tag("p", "Paired bootstrap over the images. A difference whose interval holds 0 may be chance; others "
                "have the colour of the better run. Of bad endings, repeated 2-grams, median rank, mBLEU and "
                "CHAIR, less is better.", class_="quiet"),
        ]
    )  # fmt: skip


def _row(name: str, one: Difference, values: Sequence[Interval | None]) -> Markup:
    cells = [tag("td", score_value(name, value.value) if value else "–", role="cell") for value in values]
    between = f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
    p = "< 0.002" if one.p_value <= 0.002 else f"{one.p_value:.3f}"
    sure = one.p_value < SURE
    return tag(
        "tr",
        tag("th", tag("bdi", name), scope="row", role="rowheader"),
        *cells,
        tag(
            "td", tag("b", between) if sure else tag("span", between, class_="quiet"), _drawn(name, one), role="cell"
        ),
        tag("td", tag("b", p) if sure else tag("span", p, class_="quiet"), role="cell"),
        role="row",
    )


def _drawn(name: str, one: Difference) -> Markup:
    """The interval around 0, which is in the middle, in the colour of the better run."""
    end = max(abs(one.low), abs(one.high), abs(one.value), 1e-9)

    def x(value: float) -> str:
        return f"{_WIDTH / 2 + value / end * (_WIDTH / 2 - 5):.1f}"

    middle = _TALL / 2
    colour = "chance" if one.p_value >= SURE else "s0" if (one.value > 0) != (name in LESS_IS_BETTER) else "s1"
    parts = [
        tag("path", d=f"M0 {middle}H{_WIDTH}", class_="track"),
        tag("path", d=f"M{_WIDTH / 2} 0V{_TALL}", class_="zero"),
        tag("path", d=f"M{x(one.low)} {middle}H{x(one.high)}", class_=f"whisker {colour}"),
        tag("circle", cx=x(one.value), cy=middle, r=4, class_=f"line {colour}"),
    ]
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {_TALL}", class_="interval", aria_hidden="true")
