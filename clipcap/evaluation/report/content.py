"""The data of a report: runs, images and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Interval:
    """A score, and the ends of its 95 % confidence interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


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
        retrieved: captions, or words, that were read before it was written.
    """

    image_id: str
    image: Path | None
    references: Sequence[str]
    captions: Mapping[str, str]
    scores: Mapping[str, float]
    retrieved: Sequence[str] = ()
