"""What the training loop trains, as it sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn


class MicroBatch(Protocol):
    """One micro-batch of one process."""

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What the model's forward takes."""
        ...


@runtime_checkable
class RoundedBatch(MicroBatch, Protocol):
    """A micro-batch that can take one of few shapes."""

    def rounded(self) -> MicroBatch:
        """The same loss, by inputs of a shape that other batches have too; the model's forward takes `everywhere`."""
        ...


AnyBatch = TypeVar("AnyBatch", bound=MicroBatch)


class Task(Protocol[AnyBatch]):
    """What is trained: the model, its batches, its validation and its files."""

    @property
    def model(self) -> nn.Module:
        """Its forward takes a batch's inputs and gives the loss, summed over what `weight` counts."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, as AdamW takes it: groups with their `lr`, which may have their own `weight_decay`."""
        ...

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        ...

    def windows(self, epoch: int, skip: int) -> Iterator[list[AnyBatch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""
        ...

    def weight(self, batch: AnyBatch) -> int:
        """What a micro-batch's loss is summed over (label tokens)."""
        ...

    def culprits(self, batch: AnyBatch) -> list[str]:
        """What in the batch has no finite loss, by name; nothing where that is so of all of it."""
        ...

    def images(self, batch: AnyBatch) -> list[str]:
        """The images of a batch, by name."""
        ...

    def identity(self) -> dict[str, Any]:
        """By name, what of data and options decides the weights: a resumed run must have the same."""
        ...

    def validate(self) -> dict[str, float]:
        """Scores after an epoch; all processes take part and return the same."""
        ...

    def sheet(self) -> Image.Image | None:
        """A picture of what the last validation found, for a tracker."""
        ...

    def score(self, metrics: Mapping[str, float]) -> float:
        """What decides `best`: lower is better."""
        ...

    def write(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Write the checkpoint's files into an existing folder."""
        ...

    def checkpoint_bytes(self) -> int:
        """Bytes of the tensors that `write` stores."""
        ...

    def restore(self, folder: Path) -> None:
        """Put a checkpoint's weights into the model.

        Raises:
            ClipcapError: they are damaged, or of another model.
        """
        ...

    def warm_start(self, folder: Path) -> str:
        """The flag that starts another run from the weights of a checkpoint."""
        ...
