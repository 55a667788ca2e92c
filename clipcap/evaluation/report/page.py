"""The report file: one HTML page that contains its style, script and pictures, and makes no network requests."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from clipcap.evaluation.report.content import Pictured, Run, Versus
from clipcap.evaluation.report.gallery import ALL, SHOWN, cards, choose_views, score_named, toolbar
from clipcap.evaluation.report.summary import distributions, facts, scores, training, words
from clipcap.evaluation.report.verdict import verdicts
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.html import Markup, join, phrase, tag, text

_HERE = Path(__file__).parent


def write_report(
    path: Path,
    title: str,
    runs: Sequence[Run],
    pictures: Sequence[Pictured],
    by: str = "CIDEr",
    versus: Sequence[Versus] = (),
) -> Path:
    """Write a report: scores, training, distributions, and a gallery that can be filtered.

    Of more than 3 × SHOWN pictures, the gallery holds the SHOWN best, worst and randomly drawn ones; the
    distributions count all. In place of a picture that is missing or unreadable, the page states why.

    Args:
        path: the HTML file to write; an existing file is replaced atomically.
        title: heading of the page.
        runs: evaluations to set side by side, the most important first.
        pictures: all images that were captioned.
        by: name of the score of the first run that sorts the gallery; CIDEr finds CIDEr-D.
        versus: the first run against each of the others; the page begins with it.
    Returns:
        the path.
    Raises:
        ClipcapError: the file cannot be written.
    """
    return write_page(Path(path), _page(title, runs, pictures, score_named(pictures, by), versus))


def write_curves_page(path: Path, title: str, run: Run) -> Path:
    """Write a page with the curves of a run's epochs alone; else as `write_report`."""
    curves = training([run]) or tag("p", "No epoch is finished.", class_="quiet")
    return write_page(path, filled_page(title, "", [run], {"Training": curves}))


def write_page(path: Path, page: str) -> Path:
    """Write a finished page; an existing file is replaced atomically."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as draft:
            draft.write_text(page, encoding="utf-8", newline="\n")
    return path


def _page(
    title: str, runs: Sequence[Run], pictures: Sequence[Pictured], by: str | None, versus: Sequence[Versus] = ()
) -> str:
    parts = {
        "Verdict": verdicts(runs, versus),
        "Scores": scores(runs),
        "Training": training(runs),
        "Distributions": distributions(runs, pictures, by),
        "Words": words(runs, pictures),
        "Pictures": _gallery(runs, pictures, by),
    }
    return filled_page(title, _counts(runs, pictures), runs, {name: part for name, part in parts.items() if part})


def filled_page(title: str, counts: str, runs: Sequence[Run], parts: Mapping[str, Markup]) -> str:
    """The page's template with these sections."""
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    links = (tag("li", tag("a", name, href=f"#{name.lower()}")) for name in parts)
    sections = (
        tag("section", tag("h2", name), part, id=name.lower(), aria_label=name) for name, part in parts.items()
    )
    filled = {
        "title": text(title),
        "heading": phrase("h1", title),
        "counts": counts,
        "main": list(parts)[-1].lower(),
        "facts": facts(runs),
        "links": tag("ul", *links),
        "sections": join(sections),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
    }
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(filled)


def _hash(code: str) -> str:
    """The hash by which the page's content security policy allows its own style and script, and no others."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")


def _counts(runs: Sequence[Run], pictures: Sequence[Pictured]) -> str:
    references = sum(len(one.references) for one in pictures)
    counts = {"image": len(pictures), "reference caption": references}
    counts |= {"run": len(runs)} if len(runs) > 1 else {}
    return " · ".join(f"{count:,}\u00a0{name}{'' if count == 1 else 's'}" for name, count in counts.items())


def _gallery(runs: Sequence[Run], pictures: Sequence[Pictured], by: str | None) -> Markup:
    views = choose_views(pictures, by)
    if not pictures:
        return tag("p", "No pictures.", class_="quiet")
    shown = len(views[ALL])
    selection = f"{shown:,} pictures" if shown == len(pictures) else f"{shown:,} of {len(pictures):,} pictures"
    if shown < len(pictures):
        kinds = f"the {SHOWN} best and worst by {by}, and " if by else ""
        selection += f": {kinds}{SHOWN} drawn at random from all"
    elif by:
        selection += f", sorted by {by}" + (f" of {runs[0].name}, or by its lead" if len(runs) > 1 else "")
    return join(
        [
            tag("p", phrase("span", selection), ".", class_="quiet"),
            toolbar(views, runs),
            cards(runs, pictures, views, by),
        ]
    )
