"""Text-only training: the embedding of a text, with noise, in the place of an image's (CapDec, arXiv 2211.00575)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from clipcap.models.base import IGNORE
from clipcap.training.dataset import Batch
from clipcap.training.objective import CrossEntropy, Steps, first_caption_numbers, step_number
from clipcap.training.text_data import TextInputs


class TextObjective(CrossEntropy):
    """Cross-entropy, but a row that is of texts sees one of them with noise in the place of an image.

    Where an image has several texts, one is seen and the others are learnt (CLOSE, arXiv 2211.09778): a text that has
    to restore itself learns to copy. What a row sees depends on (seed, step, row) alone.
    """

    def __init__(self, steps: Steps, inputs: TextInputs):
        super().__init__(steps)
        self.inputs = inputs
        order = steps.data.order
        leaders = np.arange(len(steps.data)) if order.leader is None else np.asarray(order.leader)
        self.together = np.bincount(leaders, minlength=len(steps.data))  # by first caption

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""
        for number, window in enumerate(super().windows(epoch, skip), skip):
            yield [self._from_texts(batch, step_number(self, epoch, number)) for batch in window]

    def _from_texts(self, batch: Batch, step: int) -> Batch:
        """The batch with noisy texts as the embeddings of its rows of texts."""
        inputs, data = self.inputs, self.steps.data
        first = first_caption_numbers(batch)  # [B]
        images = data.features.caption_rows[first] - inputs.photos  # [B], below 0 for photos
        leaders = data.order.leaders(first)
        seen = np.full(len(first), -1)
        noise = torch.zeros(batch.given.vectors.shape)  # [B, D]
        for row in np.flatnonzero(images >= 0).tolist():
            rng = np.random.default_rng((self.steps.seed, step, int(leaders[row])))
            texts = inputs.of_image(int(images[row]))
            if self.together[leaders[row]] == 1 and len(texts) > 1:
                texts = texts[texts != inputs.row_of[first[row]]]
            seen[row] = texts[rng.integers(len(texts))]
            noise[row] = torch.from_numpy(rng.standard_normal(noise.shape[1]).astype(np.float32)) * inputs.noise
        rows = np.flatnonzero(seen >= 0)
        if len(rows):
            texts = F.normalize(inputs.rows[torch.from_numpy(seen[rows])].float(), dim=1)
            shifted = texts if inputs.shift is None else texts + inputs.shift
            batch.given.vectors[rows] = F.normalize(shifted + noise[rows], dim=1)
            self._leave_out(batch, seen, leaders)
        return batch

    def _leave_out(self, batch: Batch, seen: np.ndarray, leaders: np.ndarray) -> None:
        """The text that a row sees is not learnt from it, where the row is of several."""
        layout = self.steps.data.layout(batch.captions)
        own = self.inputs.row_of[batch.captions]
        alone = self.together[leaders[batch.row_of]] == 1
        for caption in np.flatnonzero((own == seen[batch.row_of]) & (own >= 0) & ~alone).tolist():
            start = int(layout.offsets[caption])
            batch.labels[batch.row_of[caption], start : start + int(layout.lengths[caption])] = IGNORE

    def describe(self) -> list[str]:
        """How texts stand in for images."""
        inputs = self.inputs
        moved = ", moved to the mean of the photos" if inputs.shift is not None else ""
        mixed = f"; beside {inputs.photos:,} photos" if inputs.photos else ""
        return [
            f"texts of {inputs.images:,} images or lines in place of photos, noise {inputs.noise:.4f}{moved}{mixed}"
        ]

    def identity(self) -> dict[str, Any]:
        """By name, what decides the weights besides data and model."""
        shift = "none" if self.inputs.shift is None else f"{self.inputs.shift.double().norm().item():.6f}"
        return {"objective": "text", "noise": self.inputs.noise, "shift": shift, "photos": self.inputs.photos}
