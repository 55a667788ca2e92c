"""HTML that is escaped by construction: everything except `Markup` is escaped as text."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

# Not Jinja2: charts, cards and tables of a page are nested calls here, which pyright checks and a debugger enters. A
# macro of a template would have to state anew which of its arguments are finished HTML.
_VOID = ("img", "input")
# Control characters would vanish or, as lone surrogates, not be writable: each gets a sign that can be seen.
_SIGNS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
_SIGNS |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)


class Markup(str):
    """Finished HTML."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Anything as HTML that shows it and does nothing else; composed (NFC), so that a search finds it."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(unicodedata.normalize("NFC", str(value)).translate(_SIGNS)))


def join(parts: Iterable[object]) -> Markup:
    """One after the other."""
    return Markup("".join(map(text, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Attribute `class_` is class, `aria_label` is aria-label; None and False are left out."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    end = "" if name in _VOID else f"{join(children)}</{name}>"
    return Markup(f"<{name}{written}>{end}")


def phrase(name: str, value: object, **attributes: object) -> Markup:
    """An element with somebody's words, set in the direction of their script."""
    return tag(name, value, dir="auto", **attributes)


def number(value: float) -> str:
    """A score as shown: three digits behind the point where it is small, none where it is large or a count."""
    if abs(value) >= 100 or (abs(value) >= 10 and value == int(value)):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
