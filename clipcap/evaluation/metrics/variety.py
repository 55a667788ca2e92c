"""How much several captions of one image differ: mBLEU and self-CIDEr."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from clipcap.evaluation.metrics.language import ngrams_of
from clipcap.evaluation.metrics.tokenize import CaptionTokens

ORDERS = 4
Vector = dict[tuple[str, ...], float]


def mbleu_counts(
    several: Sequence[Sequence[CaptionTokens]],
    bleu_counts: Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray],
) -> np.ndarray:
    """What BLEU counts of each caption of an image against the other captions of the same image.

    Args:
        several: N images with K captions each, as tokens.
        bleu_counts: N captions and their references, tokens parted by blanks → [N, 10].
    Returns:
        float64 [N, K * 10]; see `mbleu_of_counts`.
    """
    texts = [[" ".join(tokens) for tokens in captions] for captions in several]
    rows = []
    for place in range(len(texts[0])):
        others = [captions[:place] + captions[place + 1 :] for captions in texts]
        rows.append(bleu_counts([captions[place] for captions in texts], others))
    return np.concatenate(rows, axis=1)


def mbleu_of_counts(counts: np.ndarray, bleu_of_counts: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """mBLEU-4: the mean over places of the BLEU-4 of the captions at that place; counts [..., K * 10] → [...]."""
    by_place = counts.reshape(*counts.shape[:-1], -1, 10)  # [..., K, 10]
    return bleu_of_counts(by_place, ORDERS).mean(axis=-1)


def self_cider(
    several: Sequence[Sequence[CaptionTokens]], references: Sequence[Sequence[CaptionTokens]]
) -> np.ndarray:
    """Self-CIDEr of each image (arXiv 1903.12020): 0 where its captions are the same, 1 where they share nothing.

    -log_K(√λ₁ / Σ √λ) of the eigenvalues λ of the K x K matrix of CIDEr similarities between the captions. As in
    CIDEr, n-grams of 1 to 4 words are weighted by their rarity among the images.

    Args:
        several: N images with K captions each, as tokens, K at least 2.
        references: the human captions of the same images, which say how rare an n-gram is.
    Returns:
        float64 [N].
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    for captions in references:
        frequency.update({ngram for one in captions for n in range(1, ORDERS + 1) for ngram in ngrams_of(one, n)})
    rarest = math.log(max(2, len(references)))
    return np.array([_self_cider(captions, frequency, rarest) for captions in several])


def _self_cider(captions: Sequence[CaptionTokens], frequency: Counter, rarest: float) -> float:
    vectors = [[_tf_idf(tokens, n, frequency, rarest) for n in range(1, ORDERS + 1)] for tokens in captions]
    kernel = np.eye(len(captions))  # [K, K]
    for i, one in enumerate(captions):
        for j, other in enumerate(captions[:i]):
            alike = sum(map(_cosine, vectors[i], vectors[j])) / ORDERS
            kernel[i, j] = kernel[j, i] = 1.0 if list(one) == list(other) else alike
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))  # [K], the largest last
    return float(max(0.0, -math.log(roots[-1] / roots.sum()) / math.log(len(captions))))


def _tf_idf(tokens: CaptionTokens, order: int, frequency: Counter, rarest: float) -> Vector:
    counts = Counter(ngrams_of(tokens, order))
    return {ngram: n * (rarest - math.log(max(1, frequency[ngram]))) for ngram, n in counts.items()}


def _cosine(one: Vector, other: Vector) -> float:
    """The cosine of two vectors; 0 where one of them is empty."""
    norms = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
    return sum(value * other[ngram] for ngram, value in one.items() if ngram in other) / norms if norms else 0.0
