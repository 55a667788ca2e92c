"""Caption metrics that need no other package."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

_WORD = re.compile(r"\w+(?:'\w+)?")
_ORDERS = (1, 2, 3, 4)  # lengths of the n-grams that CIDEr compares
_SIGMA = 6.0  # spread of CIDEr-D's penalty on a different length
Vector = dict[tuple[str, ...], float]


def words(caption: str) -> list[str]:
    """Lower-case words of a caption, without punctuation."""
    return _WORD.findall(caption.lower())


def distinct_share(captions: Sequence[str]) -> float:
    """Share of different captions: near 0 where a model says the same of every image."""
    return len({" ".join(words(c)) for c in captions}) / max(1, len(captions))


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of a corpus (arXiv 1411.5726) on lower-case words; pycocoevalcap gives the same on the same words.

    Args:
        candidates: one caption per image.
        references: the human captions of each image.
    Returns:
        the mean over images, 0 to 10; 0 where there is one image only, since every n-gram is in every document.
    """
    of_images = [[words(reference) for reference in several] for several in references]
    documents = Counter(chain.from_iterable(set(chain.from_iterable(map(_ngrams, several))) for several in of_images))
    rarity = {ngram: math.log(len(of_images) / count) for ngram, count in documents.items()}
    unseen = math.log(max(1, len(of_images)))
    scores = [_score(words(c), several, rarity, unseen) for c, several in zip(candidates, of_images)]
    return math.fsum(scores) / max(1, len(scores))


def _ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for n in _ORDERS for i in range(len(tokens) - n + 1))


def _score(candidate: list[str], references: list[list[str]], rarity: Vector, unseen: float) -> float:
    """CIDEr-D of one image."""

    def weigh(tokens: list[str]) -> Vector:
        return {ngram: count * rarity.get(ngram, unseen) for ngram, count in _ngrams(tokens).items()}

    ours = weigh(candidate)
    total = 0.0
    for reference in references:
        # Lengths are counted in bigrams, as in the authors' code.
        longer = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
        penalty = math.exp(-(longer**2) / (2 * _SIGMA**2))
        total += penalty * sum(_cosine(ours, weigh(reference), n) for n in _ORDERS) / len(_ORDERS)
    return 10 * total / max(1, len(references))


def _cosine(candidate: Vector, reference: Vector, n: int) -> float:
    """Of the n-grams' weights, those of the candidate clipped to the reference's."""
    norms = [math.sqrt(sum(w * w for ngram, w in v.items() if len(ngram) == n)) for v in (candidate, reference)]
    if not all(norms):
        return 0.0
    shared = (ngram for ngram in candidate if len(ngram) == n and ngram in reference)
    return sum(min(candidate[ngram], reference[ngram]) * reference[ngram] for ngram in shared) / math.prod(norms)
