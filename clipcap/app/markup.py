"""Rows as HTML: captions, photos with their captions, the words of a prefix, search results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clipcap.app.service import Row
from clipcap.runtime.html import Markup, join, phrase, tag
from clipcap.runtime.text import counted

KEEP = "whether the photo goes into the training set"
COPY = tag("button", "Copy", type="button", class_="copy")  # what it does: script.js


def captions(rows: Sequence[Row]) -> Markup:
    """The captions of one photo, and what was retrieved for it."""
    found = _list("ol", "captions", [tag("li", phrase("p", row["caption"]), _scores(row), COPY) for row in rows])
    return join([found, _retrieved(rows[0])]) if rows and "retrieved" in rows[0] else found


def _retrieved(row: Row) -> Markup:
    """The captions that a captioner read before it wrote, with their pictures."""
    items = []
    for one in row["retrieved"]:
        picture = tag("img", src=one["thumbnail"], alt="") if one["thumbnail"] else Markup()
        score = f"{one['cosine']:.0%}" if one["word"] else f"cosine {one['cosine']:.2f}"
        items.append(tag("li", picture, tag("div", phrase("p", one["caption"]), tag("small", score))))
    return tag("section", tag("h4", "It read"), _list("ul", "photos", items))


def photos(rows: Sequence[Row]) -> Markup:
    """How many photos have a caption, and each photo with its caption, to be edited, or an error."""
    bad = sum("error" in row for row in rows)
    count = f"{counted(len(rows) - bad, 'photo')} captioned" + (f", {bad:,} not read" if bad else "")
    return join([tag("p", count, class_="count"), _list("ul", "photos editable", [_photo(row) for row in rows])])


def chosen(count: int) -> str:
    """How many photos are chosen."""
    return f"{counted(count, 'photo')} chosen" if count else ""


def _photo(row: Row) -> Markup:
    name = phrase("cite", row["image"])
    if "error" in row:
        return tag("li", tag("b", "!", aria_hidden="true"), tag("div", name, phrase("p", row["error"])), class_="bad")
    picture = tag("img", src=row["thumbnail"], alt="")
    label = f"Caption of {row['image']}"
    text = phrase("textarea", row["caption"], rows=2, spellcheck="true", aria_label=label)
    keep = tag("label", tag("input", type="checkbox", checked=True, class_="keep"), "Keep", title=KEEP)
    return tag("li", picture, tag("div", name, text, _scores(row)), tag("div", COPY, keep, class_="choices"))


def words(rows: Sequence[Row]) -> Markup:
    """The nearest words of each prefix position; nearer words have a stronger colour."""
    items = []
    for row in rows:
        near = [
            phrase("span", entry["word"].strip() or repr(entry["word"]), style=f"--near: {entry['cosine']:.3f}",
                   title=f"cosine {entry['cosine']:.3f}")
            for entry in row["words"]
        ]  # fmt: skip
        items.append(tag("li", tag("b", row["position"]), *near))
    return _list("ol", "words", items)


def pictures(rows: Sequence[Row]) -> Markup:
    """Search results, best first."""
    items = []
    for row in rows:
        name = row["caption"] or row["image_id"]
        picture = tag("div", "cannot be read on this machine", class_="missing")
        if row["thumbnail"]:
            picture = tag("img", src=row["thumbnail"], alt=name)
        scores = tag("small", tag("span", f"score {row['score']:.3f}"), phrase("span", row["image_id"]))
        items.append(tag("li", picture, phrase("p", name), scores))
    return _list("ol", "pictures", items)


def drawn(rows: Sequence[Row]) -> Markup:
    """An animation of a text, with the words below it."""
    return join(
        tag("figure", tag("img", src=row["gif"], alt=row["text"]), phrase("figcaption", row["text"]), class_="drawn")
        for row in rows
    )


def labels(rows: Sequence[Row]) -> Markup:
    """Labels with bars that show their probabilities, best first."""
    items = []
    for row in rows:
        share = f"{100 * row['probability']:.1f} %"
        bar = tag("i", style=f"--share: {row['probability']:.4f}", aria_hidden="true")
        items.append(tag("li", phrase("p", row["label"]), tag("small", tag("span", share)), bar))
    return _list("ol", "labels", items)


def _scores(row: Row) -> Markup:
    meaning = f"probability of a token, on average (geometric); log-probability {row['logprob']:.3f}"
    parts = [tag("span", f"certainty {math.exp(min(0.0, row['logprob'])):.0%}".replace("%", " %"), title=meaning)]
    if row["clip_score"] is not None:
        cosine = "cosine of caption and photo, by the encoder"
        parts.append(tag("span", f"CLIP score {row['clip_score']:.3f}", title=cosine))
    return tag("small", *parts)


def _list(kind: str, name: str, items: Sequence[Markup]) -> Markup:
    return tag(kind, *items, class_=f"rows {name}") if items else Markup("")
