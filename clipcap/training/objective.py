"""What a step learns from: the windows of batches that the loop asks a task for, whatever they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from clipcap.training.dataset import Batch, BatchShare, CaptionDataset


@dataclass(frozen=True)
class Steps:
    """How captions are dealt out to the optimiser steps of a run, and of a step to its processes.

    Args:
        data: the captions.
        size: captions of a step, over all processes.
        seed: of the order.
        parts: how a step is shared out.
    """

    data: CaptionDataset
    size: int
    seed: int
    parts: BatchShare

    def count(self) -> int:
        """Steps of an epoch."""
        return self.data.count_steps(self.size)

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per step, from step `skip` on."""
        return self.data.windows(self.size, epoch, self.seed, self.parts, skip)


class Objective(Protocol):
    """What is learnt: the loss is Σ weight · −log p over label tokens, divided by those of the global batch.

    Attributes:
        ahead: whether a window may be made while the step before it is taken; not where it depends on the weights.
    """

    ahead: bool

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        ...

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""
        ...

    def describe(self) -> list[str]:
        """What a run says of it at its start, in lines."""
        ...

    def identity(self) -> dict[str, Any]:
        """By name, what decides the weights besides data and model."""
        ...

    def scores(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], clip_embedding: Tensor
    ) -> dict[str, float]:
        """Further scores of captions of held-out images.

        Args:
            captions: of N images, one each.
            references: the human captions of each.
            clip_embedding: [N, D].
        """
        ...

    def close(self) -> None:
        """End what it has started, after the run."""
        ...


class CrossEntropy:
    """Every caption of every image, each token with the weight 1."""

    ahead = True

    def __init__(self, steps: Steps):
        self.steps = steps

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.steps.count()

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""
        return self.steps.windows(epoch, skip)

    def describe(self) -> list[str]:
        """Nothing: it is what training is without a word."""
        return []

    def identity(self) -> dict[str, Any]:
        """Nothing besides data and model."""
        return {}

    def scores(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], clip_embedding: Tensor
    ) -> dict[str, float]:
        """None besides those of any captioner."""
        return {}

    def close(self) -> None:
        """It has started nothing."""


def step_number(objective: Objective, epoch: int, step: int) -> int:
    """The number of a step of an epoch in the whole run: it seeds the step's random numbers."""
    return epoch * objective.steps_per_epoch() + step


def first_caption_numbers(batch: Batch) -> np.ndarray:
    """The number of each row's first caption, int64 [B]."""
    return batch.captions[np.diff(batch.row_of, prepend=-1) != 0]
