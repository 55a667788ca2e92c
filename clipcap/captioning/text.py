"""Captions as text: tidied, and whether they are all alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_BEFORE_PUNCTUATION = re.compile(r"\s+([.,!?;:%)\]}])")
_AFTER_OPENING = re.compile(r"([(\[{])\s+")
# Chinese and Japanese have no blanks; tokenizers of single characters set one between any two.
_WIDE = "[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60]"
_BETWEEN_WIDE = re.compile(f"(?<={_WIDE}) (?={_WIDE})")
_CONTRACTION = re.compile(r"\b(\w+) (n't|'(?:s|re|ve|ll|d|m))\b")


def tidy(caption: str) -> str:
    """Blanks before punctuation, control and replacement characters and runs of white space taken out."""
    kept = "".join(" " if c.isspace() else c for c in caption if c.isspace() or _kept(c))
    text = _BETWEEN_WIDE.sub("", " ".join(kept.split()))
    text = _BEFORE_PUNCTUATION.sub(r"\1", text)
    text = _AFTER_OPENING.sub(r"\1", text)
    return _CONTRACTION.sub(r"\1\2", text)


def _kept(character: str) -> bool:
    # U+FFFD stands for bytes that were no UTF-8; Cf holds joiners that emoji need, so only Cc, Cs and Co go.
    return character != "\ufffd" and unicodedata.category(character) not in ("Cc", "Cs", "Co", "Cn")


def collapsed(captions: Sequence[str]) -> int:
    """How many different captions there are, where a model says the same of different images; else 0.

    That is one caption for 4 images or more, two for 8 or more, or as many as a tenth of the images. Case and
    punctuation make no difference.
    """
    different = len({tuple(re.findall(r"\w+", caption.lower())) or caption for caption in captions})
    allowed = max(min(len(captions) // 4, 2), len(captions) // 10)
    return different if different <= allowed else 0
