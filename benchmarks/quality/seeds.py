"""Several seeds as one paired test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipcap.evaluation.metrics.bootstrap import Comparison, paired_bootstrap
from clipcap.evaluation.metrics.score import Scores

METRIC = "CIDEr-D"


def compare_seeds(ours: Sequence[Scores], others: Sequence[Scores]) -> Comparison:
    """CIDEr-D of the runs of all seeds against others: what an image gains is its mean over seeds; images are drawn.

    Args:
        ours: scores of the same images, one of each seed.
        others: likewise.
    """
    first, second = (np.mean([one.per_image[METRIC] for one in runs], axis=0) for runs in (ours, others))  # [N]
    return paired_bootstrap(first, second, n=10_000)


def describe(gain: Comparison) -> str:
    """A difference with its interval and p-value."""
    return f"{gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] p {gain.p_value:.4f}"
