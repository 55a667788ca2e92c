"""ROUGE-L of the COCO evaluation (W04-1013), for captions of any length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

# pycocoevalcap has this score too. It is an extra, though, and scores that need no Java work without it; its table
# of both texts' tokens fills the memory where a caption is a book.
_BETA = 1.2  # how much more recall counts than precision


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """The F-score of a caption, from the best precision and the best recall among its references.

    Args:
        candidate: tokens parted by blanks; no token counts as one that is empty, as in the COCO evaluation.
        references: likewise, one or more.
    """
    tokens = candidate.split(" ")
    precision = recall = 0.0
    for reference in references:
        wanted = reference.split(" ")
        common = longest_common_subsequence(tokens, wanted)
        precision, recall = max(precision, common / len(tokens)), max(recall, common / len(wanted))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision) if precision else 0.0


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length, by bits (Hyyrö 2004): a table of 50,000 tokens by 50,000 would fill the memory.

    A bit of `steps` represents a token of `one`; it is 0 where the subsequence grows at that token.
    """
    places: defaultdict[str, int] = defaultdict(int)
    for place, token in enumerate(one):
        places[token] |= 1 << place
    whole = (1 << len(one)) - 1
    steps = whole
    for token in other:
        matched = steps & places.get(token, 0)
        steps = ((steps + matched) | (steps - matched)) & whole
    return len(one) - steps.bit_count()
