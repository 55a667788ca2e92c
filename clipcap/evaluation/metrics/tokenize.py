"""Captions cut into tokens for the metrics: the COCO evaluation's way, through Java or not, or by character."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from clipcap.evaluation.metrics import java
from clipcap.scoring import ptb_tokenizer

CaptionTokens = Sequence[str]

# Scripts that put no blanks between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters.
_WITHOUT_BLANKS = (
    (0x0E00, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def tokenize(
    captions: Sequence[str], characters: bool = False, with_java: bool = True
) -> tuple[list[list[str]], list[str]]:
    """Cut captions into lower-case tokens without punctuation, as the COCO evaluation does.

    Args:
        captions: texts; white space of any kind is one blank.
        characters: one token for each character of scripts without blanks between words (Chinese, Japanese, Thai…);
            other scripts go by word.
        with_java: use Stanford's tokenizer if Java is installed; otherwise its Python equivalent.
    Returns:
        the tokens of each caption, and notes: which tokenizer, and why.
    """
    if characters:
        return [_characters(caption) for caption in captions], ["tokens: single characters"]
    if with_java:
        try:
            return java.stanford_tokenize(captions), ["tokens: PTBTokenizer of Stanford CoreNLP 3.4.1 (Java)"]
        except java.Unavailable as error:
            skipped = [f"PTBTokenizer skipped: {error}"]
    else:
        skipped = ["PTBTokenizer skipped: Java is switched off"]
    return ptb_tokenizer.ptb_tokenize(captions), [*skipped, "tokens: the Penn Treebank tokenizer of clipcap (Python)"]


def _characters(caption: str) -> list[str]:
    """Single characters where a script has no blanks, words where it has, without punctuation."""
    found: list[str] = []
    in_word = False
    for char in unicodedata.normalize("NFKC", caption).lower():
        kind = unicodedata.category(char)[0]
        if kind == "M" and found:  # a vowel sign or accent belongs to the letter before
            found[-1] += char
        elif kind not in "LN":
            in_word = False
        elif any(first <= ord(char) <= last for first, last in _WITHOUT_BLANKS):
            found.append(char)
            in_word = False
        elif in_word:
            found[-1] += char
        else:
            found.append(char)
            in_word = True
    return found
