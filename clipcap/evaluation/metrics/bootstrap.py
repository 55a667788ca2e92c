"""How sure a score is: bootstrap over images, of one run and of two runs on the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clipcap.errors import ClipcapError

OfSums = Callable[[np.ndarray], np.ndarray]  # [..., K] sums over images -> [...] scores


def median(values: np.ndarray) -> np.ndarray:
    """The median over images, in the place of a score of sums: [..., N] -> [...]."""
    return np.median(values, axis=-1)


_DRAWN_TOGETHER = 1 << 22  # numbers drawn at once, to bound memory


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same images.

    Attributes:
        difference: score of the first less that of the second.
        low, high: 95 % interval of the difference.
        p_value: two-sided, of the hypothesis that neither is better.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    rows: np.ndarray, of_sums: OfSums | None = None, n: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a corpus score over images drawn with replacement.

    Args:
        rows: [N] one score an image, or [N, K] what the score sums over images.
        of_sums: the score of such sums; the mean of `rows` where None; or `median`, of [N].
        n: times the set is drawn.
        seed: of the draws.
    Returns:
        the 2.5 and 97.5 % quantiles.
    Raises:
        ClipcapError: no images.
    """
    low, high = np.quantile(_resampled([rows], of_sums, n, seed)[0], [0.025, 0.975])
    return float(low), float(high)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, of_sums: OfSums | None = None, n: int = 1000, seed: int = 0
) -> Comparison:
    """Is run `a` better than run `b`? Both are scored on the same draws (Koehn 2004, W04-3250).

    Args:
        a: rows of the first run, as for `bootstrap_interval`.
        b: rows of the second run, image for image.
        of_sums: likewise.
        n: likewise.
        seed: likewise.
    Raises:
        ClipcapError: no images, or the runs differ in their number.
    """
    if len(a) != len(b):
        raise ClipcapError(
            f"the runs to compare have {len(a)} and {len(b)} images: caption the same images with both"
        )
    first, second = _resampled([a, b], of_sums, n, seed)
    drawn = first - second
    low, high = np.quantile(drawn, [0.025, 0.975])
    against = min((drawn <= 0).sum(), (drawn >= 0).sum())
    difference = whole_score(a, of_sums) - whole_score(b, of_sums)
    return Comparison(difference, float(low), float(high), min(1.0, 2 * (against + 1) / (n + 1)))


def _matrix(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)  # [N, K]


def whole_score(rows: np.ndarray, of_sums: OfSums | None = None) -> float:
    """The score of all images; arguments as for `bootstrap_interval`."""
    if of_sums is median:
        return float(median(rows))
    sums = _matrix(rows).sum(axis=0)
    return float(of_sums(sums)) if of_sums else float(sums[0] / len(rows))


def _resampled(runs: list[np.ndarray], of_sums: OfSums | None, n: int, seed: int) -> list[np.ndarray]:
    """Scores [n] of each run on the same n draws."""
    images = len(runs[0])
    if not images:
        raise ClipcapError("no images to draw from: a bootstrap needs at least one scored image")
    random = np.random.default_rng(seed)
    together = max(1, _DRAWN_TOGETHER // images)
    if of_sums is median:
        found = []
        for start in range(0, n, together):
            drawn = random.integers(images, size=(min(together, n - start), images))
            found.append([median(np.asarray(rows, dtype=np.float64)[drawn]) for rows in runs])
        return [np.concatenate(parts) for parts in zip(*found)]
    matrices = [_matrix(rows) for rows in runs]
    sums: list[list[np.ndarray]] = [[] for _ in runs]
    for start in range(0, n, together):
        draws = min(together, n - start)
        drawn = random.integers(images, size=(draws, images)) + images * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * images).reshape(draws, images)
        for found, matrix in zip(sums, matrices):
            found.append(times @ matrix)  # [draws, N] @ [N, K]
    whole = [np.concatenate(found) for found in sums]  # [n, K]
    return [of_sums(found) if of_sums else found[:, 0] / images for found in whole]
