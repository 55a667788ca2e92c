"""The data of a report: runs, images and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipcap.prompts.datastore import Retrieved


@dataclass(frozen=True)
class Interval:
    """A score, and the ends of its 95 % confidence interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """What a run scores more than another: the difference, its 95 % interval and the two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Versus:
    """Two runs on the same images.

    Attributes:
        first, second: their names.
        verdict: a sentence.
        differences: first less second, by score.
    """

    first: str
    second: str
    verdict: str
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Run:
    """A captioner that was evaluated.

    Attributes:
        name: shown wherever runs are compared.
        scores: of the corpus, in the order to show.
        facts: what was evaluated and how, each under a short name.
        notes: what was skipped, and why.
        epochs: the lines of `metrics.jsonl`: `epoch` and any other numbers.
    """

    name: str
    scores: Mapping[str, Interval]
    facts: Mapping[str, str]
    notes: Sequence[str] = ()
    epochs: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Pictured:
    """An image that was captioned.

    Attributes:
        image_id: shown with the picture, or in its place if it is missing.
        image: the picture's file; None if unknown.
        references: captions by people.
        captions: by name of the run, the first run's first.
        scores: of the first run's caption.
        others: scores of the other runs' captions, by name of the run.
        retrieved: captions with their pictures, or words, that were read before it was written.
    """

    image_id: str
    image: Path | None
    references: Sequence[str]
    captions: Mapping[str, str]
    scores: Mapping[str, float]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    retrieved: Sequence[Retrieved] = ()

    def scores_of(self, run: str) -> Mapping[str, float]:
        """The scores of a run's caption; empty where they are not known."""
        return self.scores if next(iter(self.captions), None) == run else self.others.get(run, {})

    def lead(self, by: str) -> float:
        """What the first run's caption scores more than the best of the others; NaN where one is not known."""
        rest = [scores.get(by, math.nan) for scores in self.others.values()]
        return self.scores.get(by, math.nan) - max(rest) if rest and all(map(math.isfinite, rest)) else math.nan
