"""Scores of predicted labels: accuracy with intervals, per class, and the confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics.bootstrap import bootstrap_interval


@dataclass(frozen=True)
class Scores:
    """Scores on N photos with true labels.

    Attributes:
        top: {1: …, 5: …}: the share of photos whose label is among the first k, and its 95 % interval.
        classes: for each label the number of photos, the share found (recall), and the share right of those given
            the label (precision; None where none was).
        confusion: (true, given) → number, the wrong ones.
    """

    photos: int
    top: dict[int, tuple[float, tuple[float, float]]]
    classes: dict[str, tuple[int, float, float | None]]
    confusion: dict[tuple[str, str], int]

    def content(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "photos": self.photos,
            **{f"top-{k}": {"share": share, "interval": interval} for k, (share, interval) in self.top.items()},
            "classes": {
                label: {"photos": count, "recall": recall, "precision": precision}
                for label, (count, recall, precision) in self.classes.items()
            },
            "confusion": [
                {"true": true, "given": given, "photos": count} for (true, given), count in self.confusion.items()
            ],
        }

    def lines(self) -> list[str]:
        """For the terminal."""
        found = [
            f"top-{k}: {100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            for k, (share, (low, high)) in self.top.items()
        ]
        width = max(len(label) for label in self.classes)
        found.append(f"{'label':{width}}  photos  recall  precision")
        for label, (count, recall, precision) in self.classes.items():
            given = "–" if precision is None else f"{100 * precision:.1f}"
            found.append(f"{label:{width}}  {count:6}  {100 * recall:6.1f}  {given:>9}")
        if self.confusion:
            pairs = [f"{true} for {given} {count}×" for (given, true), count in [*self.confusion.items()][:8]]
            found.append("taken: " + ", ".join(pairs))
        return found


def score(probabilities: Tensor, labels: Sequence[str], truth: Sequence[str], seed: int = 0) -> Scores:
    """Score probabilities [N, C] against true labels, N.

    Raises:
        ClipcapError: a true label is not among the labels.
    """
    unknown = sorted(set(truth) - set(labels))
    if unknown:
        raise ClipcapError(
            f"--data has the label {unknown[0]!r}, which is not among --labels ({', '.join(list(labels)[:8])})"
        )
    order = probabilities.argsort(dim=1, descending=True, stable=True)  # [N, C]
    targets = np.array([list(labels).index(name) for name in truth])
    right = order.numpy() == targets[:, None]
    top = {}
    for k in (1, 5):
        if k == 1 or k < len(labels):
            hits = right[:, :k].any(1).astype(float)
            top[k] = float(hits.mean()), bootstrap_interval(hits, seed=seed)
    given = order[:, 0].numpy()
    classes = {}
    for number, label in enumerate(labels):
        mine, predicted = targets == number, given == number
        if mine.any():
            precision = float((targets[predicted] == number).mean()) if predicted.any() else None
            classes[label] = int(mine.sum()), float((given[mine] == number).mean()), precision
    wrong = Counter((labels[int(t)], labels[int(g)]) for t, g in zip(targets.tolist(), given.tolist()) if t != g)
    return Scores(len(truth), top, classes, dict(wrong.most_common()))
