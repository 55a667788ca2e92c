"""Captions as text: tidied by the habits of their language, and whether they are all alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_BEFORE_STOP = re.compile(r" +([.,)\]}])")
_BEFORE_SIGN = re.compile(r" +([!?;:%])")
_AFTER_OPENING = re.compile(r"([(\[{]) +")
_CONTRACTION = re.compile(r"\b(\w+) (n't|'(?:s|re|ve|ll|d|m))\b")
_SPACES = re.compile(r"\s+")
_WORD = re.compile(r"[^\W\d_]+")
# Blanks that a language sets on purpose: no-break ones of French, the wide one of Japanese.
_OWN_BLANKS = ("\u00a0", "\u202f", "\u3000")

# Chinese and Japanese, which set no blanks between words.
WIDE = (
    "\u2e80-\u303f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
)
_BETWEEN_WIDE = re.compile(f"(?<=[{WIDE}]) +(?=[{WIDE}.,!?;:])")
_SPACED_PAIR = re.compile(f"[{WIDE}] +(?=[{WIDE}])")
_JOINED_PAIR = re.compile(f"[{WIDE}](?=[{WIDE}])")

# Small words that tell a language in Latin letters; those of English that other languages have too are left out.
ENGLISH = frozenset("the a an of with and is are in on at to his her its their that this by for from".split())
FOREIGN = frozenset(
    "le la les un une et est sur dans avec il elle qui du au aux ce cette sont deux "  # French
    "el los las una unos y con en es del al por para su que está son dos "  # Spanish
    "il lo gli uno e di che con è sono nel della due "  # Italian
    "o os as um uma com em no na do da ao são dois "  # Portuguese
    "der die das ein eine einen und ist auf mit im zwei sind von den dem "  # German
    "de het een en van op met zijn twee hij zij "  # Dutch
    "en ett och är på med som två av till det den og er på to jeg "  # Scandinavian
    "się na jest z i w do ze oraz dwa "  # Polish
    "ve bir bu ile olan "  # Turkish
    "va và một con trên "  # Vietnamese
    "yang di dan sebuah dengan seorang".split()  # Indonesian
) - {"a", "an", "in", "to", "no", "die", "as", "do", "i", "on", "of", "by", "at"}


def tidy(caption: str) -> str:
    """A caption without control and replacement characters, with the spacing of its language.

    In English, blanks before punctuation and within contractions go, which models learn from tokenised captions.
    Other languages keep theirs: French sets a blank before ; and !, Dutch before 's. Chinese and Japanese set none
    between words; where a tokenizer put one between all signs, they go.
    """
    kept = "".join(c for c in caption if c.isspace() or _allowed(c))
    text = _SPACES.sub(_one_blank, kept).strip()
    if len(_SPACED_PAIR.findall(text)) > len(_JOINED_PAIR.findall(text)):
        text = _BETWEEN_WIDE.sub("", text)
    words = [word.lower() for word in _WORD.findall(text)]
    if not all(_is_latin(word) for word in words):
        return text
    text = _AFTER_OPENING.sub(r"\1", _BEFORE_STOP.sub(r"\1", text))
    if _is_english(text, words):
        text = _CONTRACTION.sub(r"\1\2", _BEFORE_SIGN.sub(r"\1", text))
    return text


def _one_blank(match: re.Match) -> str:
    return match[0] if match[0] in _OWN_BLANKS else " "


def _is_latin(word: str) -> bool:
    return all(c.isascii() or unicodedata.name(c, "").startswith(("LATIN", "MODIFIER", "COMBINING")) for c in word)


def _is_english(text: str, words: Sequence[str]) -> bool:
    """Whether a text in Latin letters is English; a few words without any sign of another language are."""
    if any(sign in text for sign in "«»¿¡"):
        return False
    foreign = sum(word in FOREIGN or not word.isascii() for word in words)
    return foreign == 0 or sum(word in ENGLISH for word in words) > foreign


def _allowed(character: str) -> bool:
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
