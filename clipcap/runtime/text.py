"""Captions as text: tidied, fit for a terminal or a spreadsheet, and whether they are all alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_BEFORE_PUNCTUATION = re.compile(r"\s+([.,!?;:%)\]}])")
_AFTER_OPENING = re.compile(r"([(\[{])\s+")
_CONTRACTION = re.compile(r"\b(\w+) (n't|'(?:s|re|ve|ll|d|m))\b")

# What a spreadsheet may run (OWASP, CSV injection), and what already stands behind a sign of `as_cell`.
_FORMULA = re.compile(r"'*(?:[\s\0]*[=+\-@＝＋－＠]|[\t\r\n\0])")


def tidy(caption: str) -> str:
    """Blanks before punctuation, control and replacement characters and runs of white space taken out."""
    kept = "".join(" " if c.isspace() else c for c in caption if c.isspace() or _kept(c))
    text = " ".join(kept.split())
    text = _BEFORE_PUNCTUATION.sub(r"\1", text)
    text = _AFTER_OPENING.sub(r"\1", text)
    return _CONTRACTION.sub(r"\1\2", text)


def printable(text: str) -> str:
    """Text as a terminal may show it: line breaks, escape sequences and changes of direction written as escapes."""
    shown = (c if _harmless(c) else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(shown)


def in_short(text: str, characters: int = 120) -> str:
    """The beginning of a text as a terminal may show it, in one line."""
    return printable(text if len(text) <= characters else text[: characters - 1] + "…")


def _harmless(character: str) -> bool:
    joiner = character in "\u200c\u200d"  # of emoji, Persian, Indian scripts
    return character.isprintable() or joiner or unicodedata.category(character) == "Zs"


def _kept(character: str) -> bool:
    # U+FFFD stands for bytes that were no UTF-8; Cf holds joiners that emoji need, so only Cc, Cs and Co go.
    return character != "\ufffd" and unicodedata.category(character) not in ("Cc", "Cs", "Co", "Cn")


def as_cell(text: str) -> str:
    """Text for a CSV: a ' before what a spreadsheet would run as a formula, so that it shows it instead."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell, 1) else cell


def collapsed(captions: Sequence[str]) -> int:
    """How many different captions there are, where a model says the same of different images; else 0.

    That is one caption for 4 images or more, two for 8 or more, or as many as a tenth of the images. Case and
    punctuation make no difference.
    """
    different = len({tuple(re.findall(r"\w+", caption.lower())) or caption for caption in captions})
    allowed = max(min(len(captions) // 4, 2), len(captions) // 10)
    return different if different <= allowed else 0
