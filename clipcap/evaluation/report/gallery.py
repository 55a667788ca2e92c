"""The pictures of a report: selection, thumbnails and captions."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from PIL import Image

from clipcap.evaluation.report.content import Pictured, Run
from clipcap.evaluation.report.summary import run_label
from clipcap.images.read import ImageError, open_image
from clipcap.prompts.datastore import Retrieved
from clipcap.runtime.html import Markup, join, number, phrase, tag

SHOWN = 100  # pictures of each kind: best, worst, drawn at random; each is in the file once
SIDE, SMALL = 320, 96  # pixels of the longer side: of a thumbnail, and of one beside a caption that was read
QUALITY = 82  # of JPEG
SEED = 0
ALL = "all"
AHEAD, BEHIND = "ahead", "behind"


def score_named(pictures: Sequence[Pictured], by: str) -> str | None:
    """The name of the score to sort by: `by`, or a kind of it (CIDEr-D for CIDEr)."""
    names = dict.fromkeys(name for one in pictures for name in one.scores)
    return by if by in names else next((name for name in names if name.startswith(by)), None)


def choose_views(pictures: Sequence[Pictured], by: str | None) -> dict[str, list[int]]:
    """The pictures of each view, in order.

    Best and worst never overlap; random pictures are drawn from all, so they may be among them. With at most
    three times SHOWN pictures, the report shows all of them. Of several runs, the pictures where the first leads
    most, and where it trails most, come before.
    """
    numbers = range(len(pictures))
    lead = {i: math.nan if by is None else pictures[i].lead(by) for i in numbers}
    ahead = sorted((i for i in numbers if lead[i] > 0), key=lambda i: -lead[i])[:SHOWN]
    behind = sorted((i for i in numbers if lead[i] < 0), key=lambda i: lead[i])[:SHOWN]
    value = {i: math.nan if by is None else pictures[i].scores.get(by, math.nan) for i in numbers}
    ranked = sorted((i for i in numbers if math.isfinite(value[i])), key=lambda i: -value[i])
    rest = [i for i in numbers if not math.isfinite(value[i])]
    drawn = Random(SEED).sample(numbers, min(SHOWN, len(pictures)))
    best = ranked[: min(SHOWN, (len(ranked) + 1) // 2)]
    worst = ranked[::-1][: min(SHOWN, len(ranked) // 2)]
    kept = set(numbers) if len(pictures) <= 3 * SHOWN else {*best, *worst, *drawn, *ahead, *behind}
    views = {AHEAD: ahead, BEHIND: behind, "best": best, "worst": worst, "random": drawn}
    views[ALL] = [i for i in ranked + rest if i in kept]
    return {name: places for name, places in views.items() if places}


def toolbar(views: Mapping[str, Sequence[int]], runs: Sequence[Run] = ()) -> Markup:
    """The controls that choose a view and filter it; hidden until the script runs, without which they do nothing."""
    labels: dict[str, Markup | str] = {}
    if len(runs) > 1:
        second = tag("bdi", runs[1].name) if len(runs) == 2 else "others"
        labels = {AHEAD: join([tag("bdi", runs[0].name), " better"]), BEHIND: join([second, " better"])}
    shown = {name: places for name, places in views.items() if name != "random" or len(places) < len(views[ALL])}
    choices = [
        tag("label", tag("input", type="radio", name="view", value=name, checked=place == 0),
            tag("span", labels.get(name, name.capitalize()), " ", tag("small", len(places))))
        for place, (name, places) in enumerate(shown.items())
    ]  # fmt: skip
    views_shown = tag("fieldset", tag("legend", "Pictures to show", class_="unseen"), *choices)
    field = tag("input", type="search", id="filter", placeholder="Filter by word", autocomplete="off",
                aria_label="Filter by word", spellcheck="false")  # fmt: skip
    return tag("form", views_shown, field, tag("output", for_="filter"), class_="toolbar", id="toolbar", hidden=True)


def cards(
    runs: Sequence[Run], pictures: Sequence[Pictured], views: Mapping[str, Sequence[int]], by: str | None
) -> Markup:
    """The pictures with their captions, best first; `data-best` and so on hold the place in each view."""
    places: dict[int, dict[str, int]] = {}
    for name, shown in views.items():
        for place, i in enumerate(shown):
            places.setdefault(i, {})[f"data_{name}"] = place
    return tag("div", *(_card(runs, pictures[i], by, places[i]) for i in views.get(ALL, ())), id="gallery")


def _card(runs: Sequence[Run], one: Pictured, by: str | None, places: Mapping[str, int]) -> Markup:
    order = {run.name: place for place, run in enumerate(runs)}
    captions = []
    for name, caption in one.captions.items():
        label = run_label(runs, order[name]) if name in order else tag("bdi", name)
        own = one.scores_of(name).get(by or "") if len(one.captions) > 1 else None
        label = label if own is None else join([label, " ", tag("b", number(own))])
        words = phrase("p", caption, class_="words") if caption.strip() else tag("p", "(empty)", class_="quiet")
        captions.append(tag("div", tag("span", label, class_="whose"), words, class_="caption"))
    human = [phrase("li", text, class_="words") for text in one.references]
    references = [tag("span", "references", class_="whose"), tag("ul", *human)] if human else []
    head = tag("header", phrase("h3", one.image_id, class_="words"), _score(one, by))
    column = tag("div", head, *captions, tag("div", *references, class_="references"), _read(one.retrieved),
                 class_="details-column")  # fmt: skip
    return tag("article", _picture(one), column, **places)


def _read(retrieved: Sequence[Retrieved]) -> Markup:
    """What the captioner read before it wrote: captions beside their pictures, where these are at hand, or words."""
    if not retrieved:
        return Markup()
    rows = [tag("li", _small(one.path), phrase("span", one.caption, class_="words")) for one in retrieved]
    return tag("div", tag("span", "read before", class_="whose"), tag("ul", *rows), class_="references read")


def _small(path: str | None) -> Markup:
    """The picture beside a caption that was read; nothing where it is not at hand."""
    try:
        return thumbnail(path, "", SMALL) if path else Markup()
    except ImageError:
        return Markup()


def _score(one: Pictured, by: str | None) -> Markup:
    """The score that the gallery is sorted by; the others unfold below it."""
    rest = {name: value for name, value in one.scores.items() if name != by and not one.others}
    if one.others:
        lead = math.nan if by is None else one.lead(by)
        return tag("p", f"lead {lead:+.3f}", class_="score") if math.isfinite(lead) else Markup()
    if by is not None and by in one.scores:
        shown = join([tag("span", by), " ", tag("b", number(one.scores[by]))])
    else:
        shown = Markup("scores")
    if not rest:
        return tag("p", shown, class_="score") if one.scores else Markup()
    rows = (tag("div", tag("dt", name), tag("dd", number(value))) for name, value in rest.items())
    return tag("details", tag("summary", shown), tag("dl", *rows), class_="score")


def _picture(one: Pictured) -> Markup:
    caption = next(iter(one.captions.values()), "")
    return picture(one.image_id, one.image, caption if caption.strip() else f"picture {one.image_id}, no caption")


def picture(image_id: str, image: Path | None, alt: str) -> Markup:
    """An upright thumbnail, or the reason why the picture is missing."""
    try:
        if image is None:
            raise ImageError(image_id, "not at hand")
        return thumbnail(image, alt)
    except ImageError as error:
        reason = [
            phrase("b", image_id),
            tag("span", f"picture {error.reason}" if image is None else error.reason),
        ]
        return tag("div", *reason, class_="missing")


def thumbnail(path: str | Path, alt: str, side: int = SIDE) -> Markup:
    """An upright JPEG inside the page, of which the longer side has at most `side` pixels.

    Raises:
        ImageError: no such file, or it cannot be read.
    """
    image = open_image(path)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, optimize=True)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    width, height = image.size
    return tag("img", src=source, width=width, height=height, alt=alt, decoding="async")
