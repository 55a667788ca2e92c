"""Captions cut into words, and into characters where a script puts no blanks between words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from clipcap.runtime.scripts import is_without_blanks, lacks_blanks
from clipcap.scoring import ptb_tokenizer


def words_of(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of each caption: those of the COCO evaluation, or of `characters` where a script has no blanks."""
    found = ptb_tokenizer.ptb_tokenize(captions)
    return [characters(text) if lacks_blanks(text) else tokens for text, tokens in zip(captions, found)]


def characters(caption: str) -> list[str]:
    """Single characters where a script has no blanks, words where it has, without punctuation."""
    found: list[str] = []
    in_word = False
    for char in unicodedata.normalize("NFKC", caption).lower():
        kind = unicodedata.category(char)[0]
        if kind == "M" and found:  # a vowel sign or accent belongs to the letter before
            found[-1] += char
        elif kind not in "LN":
            in_word = False
        elif is_without_blanks(char):
            found.append(char)
            in_word = False
        elif in_word:
            found[-1] += char
        else:
            found.append(char)
            in_word = True
    return found
