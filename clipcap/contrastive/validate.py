"""Validation of a dual encoder: do held-out images and their captions find each other?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from clipcap.contrastive.dataset import Captions, Pictures
from clipcap.contrastive.image_cache import NO_IMAGE
from clipcap.contrastive.towers.base import Towers
from clipcap.evaluation.metrics.recall import recall
from clipcap.sources.record import Record
from clipcap.training.accelerator import reduced


class RecallValidation:
    """Validation images and all their captions.

    Args:
        records: of the images.
        towers: the dual encoder.
        pictures: of the records, as large as the towers take them.
        accelerator: every process embeds its share.
        batch: images, or captions, embedded together.
    """

    def __init__(
        self, records: Sequence[Record], towers: Towers, pictures: Pictures, accelerator: Accelerator, batch: int
    ):
        self.towers, self.pictures, self.accelerator, self.batch = towers, pictures, accelerator, batch
        self.captions = Captions(records, towers)

    def __len__(self) -> int:
        return len(self.captions)

    def chance(self) -> dict[str, float]:
        """Recall@10 of a model that ranks at random."""
        if not len(self):
            return {}
        images, texts = len(self.captions), len(self.captions.keys)
        drawn = min(10, texts)
        missed = [math.comb(texts - own, drawn) / math.comb(texts, drawn) for own in np.diff(self.captions.starts)]
        return {"i2t_r10": 1 - sum(missed) / images, "t2i_r10": min(10, images) / images}

    @torch.no_grad()
    def scores(self) -> dict[str, float]:
        """Recall over the images that can be read; all processes take part and return the same."""
        with self.accelerator.autocast():
            images = self._whole(len(self), self._images)  # [N, D]
            texts = self._whole(len(self.captions.keys), self._texts)  # [M, D]
        read = np.array([row not in self.pictures.bad for row in range(len(self))])
        place = np.where(read, read.cumsum() - 1, NO_IMAGE)[self.captions.images]  # of each caption's image
        return recall(images[read], texts[place != NO_IMAGE], place[place != NO_IMAGE])

    def _images(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        for pictures in self.pictures.load(batches):
            yield self.towers.encode_images(self.towers.whole(pictures.to(self.accelerator.device)))

    def _texts(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        for numbers in batches:
            input_ids, mask = self.captions.padded(self.captions.keys[numbers])
            yield self.towers.encode_texts(input_ids.to(self.accelerator.device), mask.to(self.accelerator.device))

    def _whole(self, count: int, embed: Callable[[Sequence[np.ndarray]], Iterator[Tensor]]) -> Tensor:
        """The embeddings of 0 … count − 1, [count, D], of which every process makes its share."""
        mine = np.arange(count)[self.accelerator.process_index :: self.accelerator.num_processes]
        batches = np.array_split(mine, -(-len(mine) // self.batch)) if len(mine) else []
        whole = torch.zeros(count, self.towers.width, device=self.accelerator.device)
        for numbers, embedded in zip(batches, embed(batches), strict=True):
            whole[torch.from_numpy(numbers)] = embedded.float()
        return reduced(self.accelerator, whole)
