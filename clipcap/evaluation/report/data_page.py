"""The page on the photos and captions of a feature file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipcap.evaluation.report.charts import Bars, bin_edges, histogram, shares
from clipcap.evaluation.report.content import Pictured, Run
from clipcap.evaluation.report.gallery import cards, choose_views, picture, toolbar
from clipcap.evaluation.report.page import filled_page, write_page
from clipcap.evaluation.report.summary import figure, words_figure
from clipcap.runtime.html import Markup, join, phrase, tag

GROUPS_SHOWN, MEMBERS_SHOWN, WORDS_SHOWN = 24, 6, 20
COSINE = "cosine"


@dataclass(frozen=True)
class Group:
    """Pictures that are nearly the same: their least cosine, and the id and the path of each."""

    cosine: float
    members: Sequence[tuple[str, str | None]]


@dataclass(frozen=True)
class Pair:
    """A picture by its id and path, a caption of it, and the cosine of both."""

    image_id: str
    image: str | None
    caption: str
    cosine: float


@dataclass
class DataPage:
    """What the page shows.

    Attributes:
        title: the name of the file.
        facts: of the file, each under a short name.
        lengths: words of each caption.
        per_image: captions of each image.
        captions: all of them.
        repeated: captions that are there several times, and how often.
        words: the commonest words, or objects, with the share of images whose captions have them.
        objects: whether `words` are objects of a list.
        duplicates: groups within the file.
        leaks: pictures of another file with the nearly same picture of this one.
        pairs: captions beside their pictures, the worst first.
        paired, shuffled: cosines of captions and their own pictures, and other pictures.
        sample: some pictures with their captions, where there are no pairs.
        findings: what to look at, in sentences.
        notes: what was left out, and why.
    """

    title: str
    facts: dict[str, str]
    lengths: Sequence[int]
    per_image: Sequence[int]
    captions: Sequence[str]
    repeated: Sequence[tuple[str, int]] = ()
    words: Sequence[tuple[str, float]] = ()
    objects: bool = False
    duplicates: Sequence[Group] = ()
    leaks: Sequence[Group] = ()
    pairs: Sequence[Pair] = ()
    paired: Sequence[float] = ()
    shuffled: Sequence[float] = ()
    sample: Sequence[tuple[str, str | None, Sequence[str]]] = ()
    findings: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)


def write_data_page(path: Path, page: DataPage) -> Path:
    """Write the page; an existing file is replaced atomically.

    Raises:
        ClipcapError: it cannot be written.
    """
    parts = {
        "Findings": _findings(page),
        "Captions": _captions(page),
        "Words": _words(page),
        "Duplicates": _groups(page.duplicates),
        "Leaks": _groups(page.leaks),
        "Pairs": _pairs(page),
        "Pictures": _sample(page),
    }
    counts = f"{len(page.per_image):,}\u00a0images · {len(page.captions):,}\u00a0captions"
    run = Run("data", {}, page.facts)
    sections = {name: part for name, part in parts.items() if part}
    return write_page(path, filled_page(page.title, counts, [run], sections))


def _findings(page: DataPage) -> Markup:
    items = [phrase("li", finding) for finding in page.findings] or [tag("li", "Nothing that stands out.")]
    notes = [phrase("li", note, class_="quiet") for note in page.notes]
    return tag("ul", *items, *notes, class_="findings")


def _captions(page: DataPage) -> Markup:
    """Lengths, captions an image, cosines, and captions that are there several times."""
    figures = []
    if page.lengths:
        mean = sum(page.lengths) / len(page.lengths)
        summary = f"{mean:.1f} words on average, {min(page.lengths):,} to {max(page.lengths):,}"
        figures.append(_counts("Length of captions", page.lengths, "words per caption", "captions", summary))
    if len(set(page.per_image)) > 1:
        summary = f"{sum(page.per_image) / len(page.per_image):.1f} on average, {min(page.per_image):,} to "
        summary += f"{max(page.per_image):,}"
        figures.append(_counts("Captions of an image", page.per_image, "captions", "images", summary))
    if page.paired and page.shuffled:
        edges = bin_edges([*page.paired, *page.shuffled])
        series = [
            Bars("other pictures", shares(page.shuffled, edges), None),
            Bars("own", shares(page.paired, edges), 0),
        ]
        means = [sum(values) / len(values) for values in (page.paired, page.shuffled)]
        summary = f"mean {means[0]:.3f} with the own picture, {means[1]:.3f} with another one"
        title = "Cosine of caption and picture"
        figures.append(figure(title, series, histogram(f"{title}: {summary}", edges, series, "cosine"), summary))
    repeated = Markup()
    if page.repeated:
        rows = [tag("li", phrase("span", caption), " ", tag("small", f"{n:,} times")) for caption, n in page.repeated]
        repeated = join([tag("h3", "Captions that are there several times"), tag("ul", *rows, class_="repeated")])
    return join([tag("div", *figures, class_="charts"), repeated]) if figures or repeated else Markup()


def _counts(title: str, values: Sequence[int], label: str, of: str, summary: str) -> Markup:
    edges = bin_edges(values, whole=True)
    series = [Bars(of, shares(values, edges), 0)]
    return figure(title, series, histogram(f"{title}: {summary}", edges, series, label, whole=True), summary)


def _words(page: DataPage) -> Markup:
    """A cloud, and the share of images whose captions have the commonest words."""
    figures = [words_figure("captions", page.captions)]
    if page.words:
        shown = page.words[:WORDS_SHOWN]
        rows = [
            tag("li", phrase("span", word), tag("small", f"{share:.1%}"),
                tag("svg", tag("rect", width=f"{100 * share:.1f}", height=6), viewBox="0 0 100 6",
                    preserveAspectRatio="none", aria_hidden="true"))
            for word, share in shown
        ]  # fmt: skip
        title = "Objects" if page.objects else "Commonest words"
        ten = sum(share for _, share in page.words[:10]) / max(1e-9, sum(share for _, share in page.words))
        rare = sum(share == 0 for _, share in page.words)
        summary = f"share of images whose captions have the word; the first ten are {ten:.0%} of all mentions"
        summary += f"; {rare:,} objects of the list are never named" if page.objects and rare else ""
        figures.append(figure(title, [], tag("ol", *rows, class_="shares"), summary))
    return tag("div", *filter(None, figures), class_="charts") if any(figures) else Markup()


def _groups(groups: Sequence[Group]) -> Markup:
    """Pictures that are nearly the same, side by side."""
    if not groups:
        return Markup()
    drawn = []
    for group in groups[:GROUPS_SHOWN]:
        shown = [
            tag("li", picture(name, Path(path) if path else None, name), phrase("span", name))
            for name, path in group.members[:MEMBERS_SHOWN]
        ]
        more = len(group.members) - len(shown)
        label = f"cosine {group.cosine:.3f}" + (f", and {more:,} more" if more else "")
        drawn.append(tag("figure", tag("ul", *shown, class_="alike"), tag("figcaption", label)))
    rest = len(groups) - len(drawn)
    note = tag("p", f"{rest:,} more groups are not shown.", class_="quiet") if rest else ""
    return join([tag("div", *drawn, class_="groups"), note])


def _pairs(page: DataPage) -> Markup:
    """Captions beside their pictures, to be sorted and filtered."""
    name = "caption"
    run = Run(name, {}, {})
    pictured = [
        Pictured(one.image_id, Path(one.image) if one.image else None, [], {name: one.caption}, {COSINE: one.cosine})
        for one in page.pairs
    ]
    if not pictured:
        return Markup()
    views = choose_views(pictured, COSINE)
    views = {name: views[name] for name in ("worst", "best", "random", "all") if name in views}
    line = tag("p", "The worst fit their picture least, by the encoder.", class_="quiet")
    return join([line, toolbar(views), cards([run], pictured, views, COSINE)])


def _sample(page: DataPage) -> Markup:
    """Some pictures with their captions, to be filtered."""
    pictured = [Pictured(name, Path(path) if path else None, texts, {}, {}) for name, path, texts in page.sample]
    if not pictured:
        return Markup()
    views = choose_views(pictured, None)
    line = tag("p", "Spread evenly over the file.", class_="quiet")
    return join([line, toolbar(views), cards([], pictured, views, None)])
