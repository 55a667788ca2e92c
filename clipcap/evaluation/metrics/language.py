"""What captions are like as language, whatever they describe: variety over the set, endings, repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from clipcap.evaluation.metrics.tokenize import CaptionTokens
from clipcap.scoring.cider_reward import BAD_ENDINGS


def ngrams_of(tokens: CaptionTokens, order: int) -> list[tuple[str, ...]]:
    """The n-grams of a caption, in order."""
    return [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]


def distinct_rows(captions: Sequence[CaptionTokens], order: int) -> np.ndarray:
    """distinct-n (Li et al. 2016, arXiv 1510.03055), different n-grams by n-grams of all captions, as rows.

    The share falls as captions are drawn twice, so that a bootstrap over images would be too low. The rows are the
    jackknife's pseudo-values, N θ - (N - 1) θ without image i, moved so that their mean is θ: an interval or a paired
    test of their mean is that of distinct-n.

    Args:
        captions: N, one of each image, as tokens.
        order: n.
    Returns:
        float64 [N]; the mean is distinct-n, 0 to 1.
    """
    found = [Counter(ngrams_of(caption, order)) for caption in captions]
    holders: Counter[tuple[str, ...]] = Counter()  # captions that hold an n-gram
    for counts in found:
        holders.update(counts.keys())
    total = sum(counts.total() for counts in found)
    if not total:
        return np.zeros(len(captions))
    own = np.array([sum(holders[ngram] == 1 for ngram in counts) for counts in found], dtype=np.float64)  # [N]
    lengths = np.array([counts.total() for counts in found], dtype=np.float64)  # [N]
    share = len(holders) / total
    rest = total - lengths
    without = np.where(rest > 0, (len(holders) - own) / np.maximum(rest, 1), share)  # [N]
    pseudo = len(captions) * share - (len(captions) - 1) * without
    return pseudo - pseudo.mean() + share


def bad_ending_rows(captions: Sequence[CaptionTokens]) -> np.ndarray:
    """1 where a caption's last word is one that no English caption ends in, such as "with" or "a": [N]."""
    return np.array([bool(caption) and caption[-1] in BAD_ENDINGS for caption in captions], dtype=np.float64)


def repetition_rows(captions: Sequence[CaptionTokens], order: int) -> np.ndarray:
    """Share of a caption's n-grams that it has had already (rep-n of arXiv 1908.04319): [N], 0 to 1."""
    rows = []
    for caption in captions:
        ngrams = ngrams_of(caption, order)
        rows.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return np.array(rows)
