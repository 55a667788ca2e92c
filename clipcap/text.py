"""How captions are shown: tidied, in one line."""

from __future__ import annotations

import re
import unicodedata

_BEFORE_PUNCTUATION = re.compile(r"\s+([.,!?;:%)\]}])")
_AFTER_OPENING = re.compile(r"([(\[{])\s+")
_CONTRACTION = re.compile(r"\b(\w+) (n't|'(?:s|re|ve|ll|d|m))\b")


def tidy(caption: str) -> str:
    """Blanks before punctuation, control and replacement characters and runs of white space taken out."""
    kept = "".join(" " if c.isspace() else c for c in caption if c.isspace() or _printable(c))
    text = " ".join(kept.split())
    text = _BEFORE_PUNCTUATION.sub(r"\1", text)
    text = _AFTER_OPENING.sub(r"\1", text)
    return _CONTRACTION.sub(r"\1\2", text)


def _printable(character: str) -> bool:
    # U+FFFD stands for bytes that were no UTF-8; Cf holds joiners that emoji need, so only Cc, Cs and Co go.
    return character != "\ufffd" and unicodedata.category(character) not in ("Cc", "Cs", "Co", "Cn")
