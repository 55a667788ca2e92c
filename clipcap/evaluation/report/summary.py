"""The numbers of a report: facts, scores with their intervals, training curves, distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

from clipcap.evaluation.report.charts import COLOURS, Bars, Line, bin_edges, histogram, legend, line_chart, shares
from clipcap.evaluation.report.content import Interval, Pictured, Run
from clipcap.images.word_cloud import HEIGHT as CLOUD_HEIGHT
from clipcap.images.word_cloud import WIDTH as CLOUD_WIDTH
from clipcap.images.word_cloud import PlacedWord, count_words, place_words
from clipcap.runtime.html import Markup, join, number, phrase, tag, text

_NO_CURVE = ("epoch", "step")
_MEANINGS = {
    "CIDEr-D": "0 to 10; on COCO ClipCap reaches 1.1 and later captioners 1.4, on Flickr8k one person's caption "
    "against the others' 0.79; other images or numbers of references do not compare",
    "CLIPScore": "2.5 × cosine of caption and image",
    "RefCLIPScore": "with the nearest reference",
    "PAC-S": "2 × cosine, by a CLIP fine-tuned to judge",
    "R@1": "captions that find their own image first",
    "R@5": "among the first five",
    "R@10": "among the first ten",
    "median rank": "of the own image; less is better",
    "CHAIRi": "objects named that no reference names; less is better",
    "CHAIRs": "captions with such an object; less is better",
    "distinct-1": "different words by words of all captions",
    "distinct-2": "different pairs of words by all pairs",
    "repeated 2-grams": "pairs of words that a caption has twice; less is better",
    "bad endings": "captions that break off, as “with a”; less is better",
    "mBLEU-4": "likeness of several captions of an image; less is more variety",
    "self-CIDEr": "variety of several captions of an image, 0 to 1",
    "distinct": "share of different captions",
    "vocabulary": "different words",
    "length": "words per caption",
    "copied": "share of captions that training had",
}
_GROUPS = {  # headings of the table: the first score of each
    "Agreement with people": ("BLEU", "METEOR", "ROUGE", "CIDEr", "SPICE", "CHAIR"),
    "Agreement with the picture": ("CLIPScore", "RefCLIPScore", "PAC-S", "RefPAC-S", "R@", "median rank"),
    "Language": ("distinct", "repeated", "bad endings", "mBLEU", "self-CIDEr", "vocabulary", "length", "copied"),
}
_WHOLE = ("vocabulary", "median rank")  # counts
_SHARES = ("distinct", "copied")  # curves that are drawn from 0
_NAMES = {"train_loss": "training loss", "val_loss": "validation loss", "cider": "CIDEr-D"}  # of metrics.jsonl
_CLOUD_WORDS = 60
_BAR, _TALL = 240, 10  # units of the drawing of an interval
_SMALLEST = 0.001  # width of scores that is drawn in full: a smaller one does not show in the rounded scores


def run_label(runs: Sequence[Run], place: int) -> Markup:
    """A run's name, with a dot in its colour if there are several runs."""
    dot = tag("span", class_=f"dot s{place % COLOURS}", aria_hidden="true") if len(runs) > 1 else ""
    return join([dot, tag("bdi", runs[place].name)])


def facts(runs: Sequence[Run]) -> Markup:
    """What was evaluated: a list for each run."""
    lists = []
    for place, run in enumerate(runs):
        rows = (tag("div", phrase("dt", name), phrase("dd", fact)) for name, fact in run.facts.items())
        heading = tag("h2", run_label(runs, place)) if len(runs) > 1 else ""
        lists.append(tag("div", heading, tag("dl", *rows) if run.facts else "", class_="run"))
    return tag("div", *lists, class_="runs")


def score_value(name: str, value: float) -> str:
    """A score as shown: a count as a whole number, others with three digits."""
    return f"{value:,.10g}" if name in _WHOLE else number(value)


def scores(runs: Sequence[Run]) -> Markup:
    """The table of scores, one column per run, and notes on skipped metrics."""
    names = list(dict.fromkeys(name for run in runs for name in run.scores))
    if not names:
        return tag("div", tag("p", "No scores.", class_="quiet"), _notes(runs), class_="measured")
    one = len(runs) == 1
    columns = ["Value", "95 % interval"] if one else [run_label(runs, place) for place in range(len(runs))]
    head = tag("tr", tag("th", "Score", scope="col", role="columnheader"),
               *(tag("th", column, scope="col", role="columnheader") for column in columns), role="row")  # fmt: skip
    groups = []
    for heading, members in _grouped(names).items():
        title = tag("th", heading, scope="rowgroup", colspan=len(columns) + 1, role="rowheader")
        rows = [tag("tr", title, class_="group", role="row")] if heading else []
        groups.append(tag("tbody", *rows, *(_score_row(runs, name) for name in members), role="rowgroup"))
    caption = tag("caption", "Scores of all images, with 95 % confidence intervals", class_="unseen")
    body = [tag("thead", head, role="rowgroup"), *groups]
    look = "scores one" if one else "scores several"  # roles: the style sheet lays rows out as blocks on a phone
    return tag("div", tag("table", caption, *body, class_=look, role="table"), _notes(runs), class_="measured")


def _grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Scores under their headings; those of no group come last, under none."""
    groups: dict[str, list[str]] = {heading: [] for heading in (*_GROUPS, "")}
    for name in names:
        groups[next((heading for heading, starts in _GROUPS.items() if name.startswith(starts)), "")].append(name)
    return {heading: members for heading, members in groups.items() if members}


def _score_row(runs: Sequence[Run], name: str) -> Markup:
    found = [run.scores.get(name) for run in runs]
    cells = _value_cells(name, runs[0].scores[name]) if len(runs) == 1 else _cells(name, runs, found)
    meaning = [" ", tag("small", _MEANINGS[name])] if name in _MEANINGS else []
    title = tag("th", tag("bdi", name), *meaning, scope="row", role="rowheader")
    return tag("tr", title, *cells, role="row")


def _value_cells(name: str, score: Interval) -> list[Markup]:
    value, between = score_value(name, score.value), _between(name, score)
    return [tag("td", tag("b", value), role="cell"), tag("td", between, class_="quiet", role="cell")]


def _cells(name: str, runs: Sequence[Run], found: Sequence[Interval | None]) -> list[Markup]:
    """Values side by side; intervals share one scale, so that overlaps are visible."""
    spans = [_span(score) for score in found]
    ends = [end for score, span in zip(found, spans) if score and span for end in (*span, score.value)]
    cells = []
    for place, (score, span) in enumerate(zip(found, spans)):
        whose = tag("span", run_label(runs, place), class_="whose", aria_hidden="true")
        inside: list[Markup | str] = ["–"]
        if score is not None:
            inside = [tag("b", score_value(name, score.value))]
        if score is not None and span is not None:
            whisker = _whisker(score.value, span, min(ends), max(ends), place)
            inside += [tag("span", _between(name, score), class_="quiet"), whisker]
        cells.append(tag("td", whose, *inside, role="cell"))
    return cells


def _between(name: str, score: Interval) -> str:
    span = _span(score)
    return "" if span is None else " – ".join(score_value(name, end) for end in span)


def _span(score: Interval | None) -> tuple[float, float] | None:
    """Both ends of a score's interval; None where it has none."""
    if score is None or score.low is None or score.high is None:
        return None
    return score.low, score.high


def _whisker(score: float, span: tuple[float, float], low: float, high: float, place: int) -> Markup:
    def x(value: float) -> str:
        return f"{5 + (value - low) / max(high - low, _SMALLEST) * (_BAR - 10):.1f}"

    middle = _TALL / 2
    parts = [
        tag("path", d=f"M0 {middle}H{_BAR}", class_="track"),
        tag("path", d=f"M{x(span[0])} {middle}H{x(span[1])}", class_=f"whisker s{place % COLOURS}"),
        tag("circle", cx=x(score), cy=middle, r=4, class_=f"line s{place % COLOURS}"),
    ]
    return tag("svg", *parts, viewBox=f"0 0 {_BAR} {_TALL}", class_="interval", aria_hidden="true")


def _notes(runs: Sequence[Run]) -> Markup:
    """Notes on skipped metrics; a note that all runs share is shown once."""
    items = []
    for note in dict.fromkeys(note for run in runs for note in run.notes):
        whose = [place for place, run in enumerate(runs) if note in run.notes]
        names = [] if len(whose) == len(runs) else [join([run_label(runs, place), ": "]) for place in whose]
        items.append(tag("li", *names, tag("bdi", note)))
    return tag("ul", *items, class_="notes") if items else Markup()


def training(runs: Sequence[Run]) -> Markup:
    """Curves over epochs: one chart of all losses, and one of each other metric. Empty without epochs."""
    known = list(dict.fromkeys(name for run in runs for line in run.epochs for name in line if name not in _NO_CURVE))
    losses = [name for name in known if name.endswith("loss")]
    groups = {"Loss": losses} | {
        _name(name)[:1].upper() + _name(name)[1:]: [name] for name in known if name not in losses
    }
    figures = []
    for title, names in groups.items():
        lines = [line for name in names for line in _lines(runs, name, len(names) > 1)]
        if lines:
            summary = _extremes(lines, "lowest" if names is losses else "highest")
            drawn = line_chart(f"{title} by epoch: {summary}", lines, "epoch", names[0] in _SHARES)
            figures.append(figure(title, lines, drawn, summary))
    return tag("div", *figures, class_="charts") if figures else Markup()


def _name(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))


def _lines(runs: Sequence[Run], name: str, several: bool) -> list[Line]:
    """The curve of a number, for each run that has it; infinite and non-numeric values are left out."""
    found = []
    for place, run in enumerate(runs):
        drawn = [(line.get("epoch", count), line.get(name)) for count, line in enumerate(run.epochs)]
        points = [(float(x), float(y)) for x, y in drawn if _finite(x) and _finite(y)]
        label = _name(name) if several or len(runs) == 1 else ""
        label = ", ".join(part for part in (run.name if len(runs) > 1 else "", label) if part)
        if points:
            found.append(Line(label, points, place, dashed=name.startswith("train")))
    return found


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _extremes(lines: Sequence[Line], which: str) -> str:
    """The lowest or highest point of each curve, except training losses, which only fall."""
    summary = []
    for line in [line for line in lines if not line.dashed] or lines:
        x, y = (min if which == "lowest" else max)(line.points, key=lambda point: point[1])
        summary.append(f"{f'{line.label} ' if len(lines) > 1 else ''}{which} {y:.4g} at epoch {x:g}")
    return "; ".join(summary)


def distributions(runs: Sequence[Run], pictures: Sequence[Pictured], by: str | None) -> Markup:
    """Lengths of the references and of each run's captions in words, and the scores of the images."""
    figures = [_lengths(runs, pictures), _image_scores(runs, pictures, by)]
    return tag("div", *figures, class_="charts") if any(figures) else Markup()


def _lengths(runs: Sequence[Run], pictures: Sequence[Pictured]) -> Markup:
    human = [text for one in pictures for text in one.references]
    texts: list[tuple[str, int | None, list[str]]] = [("references", None, human)]
    for place, run in enumerate(runs):
        texts.append((run.name, place, [one.captions[run.name] for one in pictures if run.name in one.captions]))
    words = [(name, colour, [len(text.split()) for text in some]) for name, colour, some in texts if some]
    found = [length for _, _, lengths in words for length in lengths]
    if not found:
        return Markup()
    edges = bin_edges(found, whole=True)
    series = [Bars(name, shares(lengths, edges), colour) for name, colour, lengths in words]
    summary = "; ".join(f"{name}: {sum(some) / len(some):.1f} words on average" for name, _, some in words)
    drawn = histogram(
        f"Share of captions by number of words. {summary}", edges, series, "words per caption", whole=True
    )
    return figure("Length of captions", series, drawn, summary)


def words(runs: Sequence[Run], pictures: Sequence[Pictured]) -> Markup:
    """Word clouds of the references and of the first run's captions."""
    sets = {"references": [caption for one in pictures for caption in one.references]}
    if runs:
        sets[runs[0].name] = [one.captions[runs[0].name] for one in pictures if runs[0].name in one.captions]
    figures = [drawn for name, texts in sets.items() if (drawn := words_figure(name, texts))]
    return tag("div", *figures, class_="charts") if figures else Markup()


def words_figure(name: str, texts: Sequence[str]) -> Markup:
    """The word cloud of texts; empty without words."""
    counts = count_words(texts)
    placed = place_words(counts, _CLOUD_WORDS)
    if not placed:
        return Markup()
    summary = f"{len(counts):,} different words; commonest: {', '.join(word for word, _ in counts.most_common(5))}"
    return figure(f"Words of {name}", [], _cloud(placed, summary), summary)


def _cloud(placed: Sequence[PlacedWord], summary: str) -> Markup:
    drawn = []
    for place, one in enumerate(placed):
        where = {"x": f"{one.x:.1f}", "y": f"{one.y:.1f}", "font_size": one.size, "class_": f"w{place % COLOURS}"}
        tip = tag("title", f"{one.count:,}")
        drawn.append(tag("text", tip, one.word, text_anchor="middle", dominant_baseline="central", **where))
    box = f"0 0 {CLOUD_WIDTH} {CLOUD_HEIGHT}"
    return tag("svg", *drawn, viewBox=box, role="img", aria_label=text(summary), class_="cloud")


def _image_scores(runs: Sequence[Run], pictures: Sequence[Pictured], by: str | None) -> Markup:
    names = [run.name for run in runs] or ["captions"]
    found = {name: [v for one in pictures if _finite(v := _score_of(one, name, by))] for name in names}
    values = [value for several in found.values() for value in several]
    if not values:
        return Markup()
    edges = bin_edges(values)
    series = [Bars(name, shares(found[name], edges), place) for place, name in enumerate(names) if found[name]]
    means = {name: sum(several) / len(several) for name, several in found.items() if several}
    alone = len(means) == 1
    summary = "; ".join(
        f"{'' if alone else f'{name}: '}mean {number(mean)}{' (the line)' if alone else ''}, "
        f"median {number(sorted(found[name])[len(found[name]) // 2])}"
        for name, mean in means.items()
    )
    mark = next(iter(means.values())) if alone else None
    drawn = histogram(f"Share of images by {by}: {summary}", edges, series, f"{by} of an image", mark=mark)
    return figure(f"{by} of each image", series, drawn, summary)


def _score_of(one: Pictured, run: str, by: str | None) -> float | None:
    """What a run's caption scores; of a page without runs, the caption's own score."""
    scores = one.scores_of(run) if run in one.captions else one.scores
    return None if by is None else scores.get(by)


def figure(title: str, series: Sequence[Line | Bars], drawn: Markup, summary: str) -> Markup:
    """A drawing with its title, a legend of several series, and a summary."""
    key = legend(series) if len(series) > 1 else ""
    return tag("figure", phrase("h3", title), drawn, key, phrase("figcaption", summary))
