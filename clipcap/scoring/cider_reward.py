"""CIDEr-D of single captions against fixed document frequencies: a reward (arXiv 1612.00563).

Scores that are reported come from `score.py`, whose document frequencies are those of the corpus scored.

Document frequencies and the references' tf-idf vectors are made once, of the training images. With the end of a
caption counted as a word, a caption that breaks off ("on a plate with a") scores less than one that ends; without it
training on this reward learns to break off.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from clipcap.scoring.words import words_of

END = "<eos>"  # no token of the tokenizer looks like it
ORDERS = 4
SIGMA = 6.0  # of the penalty for another length (CIDEr-D, arXiv 1411.5726, section 5)
BAD_ENDINGS = frozenset("a an the of with and in on to".split())  # words no caption ends in

NGram = tuple[str, ...]
Vector = tuple[list[dict[NGram, float]], list[float], int]  # tf-idf by order, norms by order, number of bigrams


class CiderReward:
    """Scores captions of training images, 0 to 10.

    Args:
        references: the captions of each image, as texts.
        end: count the end of a caption as a word.
    """

    def __init__(self, references: Sequence[Sequence[str]], end: bool = True):
        self.end = end
        tokens = iter(words_of(list(chain.from_iterable(references))))
        self._references = [[self._ended(next(tokens), True) for _ in several] for several in references]
        self._log_images = math.log(max(len(references), 1))
        frequency: Counter[NGram] = Counter()
        for several in self._references:
            frequency.update(set(chain.from_iterable(map(_ngrams, several))))
        self._frequency: Mapping[NGram, int] = frequency
        self._vectors: dict[int, list[Vector]] = {}

    def score(self, images: Sequence[int], captions: Sequence[str], ended: Iterable[bool]) -> list[float]:
        """CIDEr-D of captions of images by number; `ended`: whether each came to its end before the limit."""
        found = []
        for image, tokens, whole in zip(images, words_of(captions), ended, strict=True):
            if image not in self._vectors:
                self._vectors[image] = [self._vector(reference) for reference in self._references[image]]
            found.append(self._similarity(tokens, whole, self._vectors[image]))
        return found

    def score_against(
        self, references: Sequence[Sequence[str]], captions: Sequence[str], ended: Iterable[bool]
    ) -> list[float]:
        """As `score`, against references of other images, with the same document frequencies."""
        wanted = [[self._vector(self._ended(tokens, True)) for tokens in words_of(several)] for several in references]
        tokens = words_of(captions)
        return [self._similarity(one, whole, vectors) for one, whole, vectors in zip(tokens, ended, wanted)]

    def agreement(
        self, captions: Sequence[str], others: Sequence[Sequence[str]], weights: Sequence[float]
    ) -> list[float]:
        """How far captions say what is said of other images: the weighted mean of their CIDEr-D against each.

        Args:
            captions: to score, all whole.
            others: the captions of N images, of each at least one.
            weights: N, of any sum.
        """
        split = iter(words_of(list(chain.from_iterable(others))))
        theirs = [[self._vector(self._ended(next(split), True)) for _ in several] for several in others]
        total, found = sum(weights), []
        for tokens in words_of(captions):
            ours = self._vector(self._ended(tokens, True))
            scores = [_mean_cider_d(ours, vectors) for vectors in theirs]
            found.append(sum(weight * score for weight, score in zip(weights, scores, strict=True)) / total)
        return found

    def _ended(self, tokens: Sequence[str], whole: bool) -> list[str]:
        return [*tokens, END] if self.end and whole else list(tokens)

    def _similarity(self, tokens: Sequence[str], whole: bool, references: Sequence[Vector]) -> float:
        return _mean_cider_d(self._vector(self._ended(tokens, whole)), references)

    def _vector(self, tokens: Sequence[str]) -> Vector:
        """tf-idf of all n-grams; an n-gram of no reference counts like one of a single image."""
        vectors: list[dict[NGram, float]] = [{} for _ in range(ORDERS)]
        norms = [0.0] * ORDERS
        for ngram, count in Counter(_ngrams(tokens)).items():
            weight = count * (self._log_images - math.log(max(1, self._frequency.get(ngram, 0))))
            vectors[len(ngram) - 1][ngram] = weight
            norms[len(ngram) - 1] += weight * weight
        return vectors, [math.sqrt(norm) for norm in norms], max(0, len(tokens) - 1)


def _ngrams(tokens: Sequence[str]) -> list[NGram]:
    return [tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1)]


def _mean_cider_d(ours: Vector, references: Sequence[Vector]) -> float:
    """0 to 10."""
    return sum(_cider_d(ours, theirs) for theirs in references) / len(references) * 10


def _cider_d(ours: Vector, theirs: Vector) -> float:
    """The mean over orders of the clipped cosine, 0 to 1, less the penalty for another length."""
    total = 0.0
    for mine, wanted, norm, wanted_norm in zip(ours[0], theirs[0], ours[1], theirs[1]):
        if norm and wanted_norm:
            matched = sum(
                min(weight, wanted[ngram]) * wanted[ngram] for ngram, weight in mine.items() if ngram in wanted
            )
            total += matched / (norm * wanted_norm)
    return total / ORDERS * math.exp(-((ours[2] - theirs[2]) ** 2) / (2 * SIGMA**2))


def bad_endings(captions: Sequence[str]) -> float:
    """Share of captions whose last word no caption ends in: they broke off."""
    tokens = words_of(captions)
    return sum(bool(one) and one[-1] in BAD_ENDINGS for one in tokens) / max(1, len(tokens))


def mean_length(captions: Sequence[str]) -> float:
    """Mean number of tokens of captions."""
    return sum(map(len, words_of(captions))) / max(1, len(captions))
