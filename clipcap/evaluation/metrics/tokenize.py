"""Captions cut into tokens for the metrics: the COCO evaluation's way, through Java or not, or by character."""

from __future__ import annotations

from collections.abc import Sequence

from clipcap.evaluation.metrics import java
from clipcap.scoring import ptb_tokenizer, words

CaptionTokens = Sequence[str]


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
        return [words.characters(caption) for caption in captions], ["tokens: single characters"]
    if with_java:
        try:
            return java.stanford_tokenize(captions), ["tokens: PTBTokenizer of Stanford CoreNLP 3.4.1 (Java)"]
        except java.Unavailable as error:
            skipped = [f"PTBTokenizer skipped: {error}"]
    else:
        skipped = ["PTBTokenizer skipped: Java is switched off"]
    return ptb_tokenizer.ptb_tokenize(captions), [*skipped, "tokens: the Penn Treebank tokenizer of clipcap (Python)"]
