"""Images with one caption each, as batches for contrastive training: the same for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.contrastive.image_cache import NO_IMAGE
from clipcap.contrastive.towers.base import Towers, normalised
from clipcap.sources.record import Record
from clipcap.training.dataset import BatchShare


class Pictures(Protocol):
    """What is looked at of records, by number: pictures, or the vectors that stand for them."""

    records: Sequence[Record]
    bad: dict[int, str]  # those that cannot be read, and why

    def fill(self, quiet: bool) -> None:
        """Read all into memory, if they may be kept there."""
        ...

    def load(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Those of each batch in turn: pictures uint8 [B, S, S, 3], or vectors [B, W]."""
        ...


class Views(Protocol):
    """How what is looked at becomes what the image tower takes."""

    def boxes(self, uniform: np.ndarray) -> Tensor:
        """Where to look in training, from uniform random numbers [B, 4]."""
        ...

    def __call__(self, pictures: Tensor, boxes: Tensor) -> Tensor:
        """A batch as training sees it."""
        ...


@dataclass(frozen=True)
class Crops:
    """Random square crops: light augmentation, done on the device, a whole batch at once.

    Args:
        resolution: R, what the model takes.
        smallest: least share of the picture that is kept.
        flip: mirror half of the pictures.
        mean, std: of the model's pixels.
    """

    resolution: int
    smallest: float
    flip: bool
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def side(self) -> int:
        """S, pixels of the pictures to crop from: a crop of average size keeps its scale."""
        return math.ceil(self.resolution / math.sqrt((1 + self.smallest) / 2))

    def boxes(self, uniform: np.ndarray) -> Tensor:
        """Where to crop, from uniform random numbers [B, 4]: affine maps [B, 2, 3] as grid_sample takes them."""
        draws = torch.from_numpy(uniform)
        scale = (self.smallest + (1 - self.smallest) * draws[:, 0]).sqrt()  # of a side
        shift = (1 - scale[:, None]) * (2 * draws[:, 1:3] - 1)  # [B, 2]
        mirror = torch.where(draws[:, 3] < 0.5, -1.0, 1.0) if self.flip else torch.ones(len(draws))
        boxes = torch.zeros(len(draws), 2, 3)
        boxes[:, 0, 0], boxes[:, 1, 1], boxes[:, :, 2] = scale * mirror, scale, shift
        return boxes

    def __call__(self, pictures: Tensor, boxes: Tensor) -> Tensor:
        """Pictures uint8 [B, S, S, 3] and boxes [B, 2, 3] → pixels float32 [B, 3, R, R]."""
        pixels = normalised(pictures, self.mean, self.std)
        if self.smallest == 1 and not self.flip:
            return pixels
        grid = F.affine_grid(boxes, [len(boxes), 3, self.resolution, self.resolution], align_corners=False)
        return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class ImageTextBatch:
    """Images with a caption each: one micro-batch of one process."""

    pictures: Tensor  # uint8 [B, S, S, 3], or vectors [B, W]
    boxes: Tensor  # [B, 2, 3]
    input_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, T]
    rows: np.ndarray  # int64 [B], the images; NO_IMAGE for none
    keys: Tensor  # int64 [B], a number for each different caption; NO_IMAGE for a missing picture
    views: Views

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What the model's forward takes."""
        names = ("input_ids", "attention_mask", "keys")
        inputs = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        pictures = self.pictures.to(device, non_blocking=True)
        return {"pixels": self.views(pictures, self.boxes.to(device)), **inputs}


class Captions:
    """The captions of N records, tokenised once."""

    def __init__(self, records: Sequence[Record], towers: Towers):
        texts = [caption for record in records for caption in record.captions]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self.keys = np.array([numbers[text] for text in texts])  # [M], the same for equal captions
        self.starts = np.array([0, *accumulate(len(record.captions) for record in records)])  # [N + 1]
        self.tokens = towers.tokenize(list(numbers)) if numbers else []
        self.pad_id = towers.pad_id

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def images(self) -> np.ndarray:
        """The record that each caption belongs to, [M]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def padded(self, keys: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens and mask [B, T] of captions, as long as the longest of them."""
        rows = [torch.tensor(self.tokens[key]) for key in keys]
        lengths = torch.tensor([len(row) for row in rows])
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        return input_ids, (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()


@dataclass(frozen=True)
class Extra:
    """Further images behind the set's own, `count` of them, and their share of every batch."""

    count: int = 0
    share: float = 0.0


class ImageTextDataset:
    """Training pairs: in each epoch every image once, with one of its captions and one crop.

    Caption and crop depend on (seed, epoch, image) alone, order on (seed, epoch), so that a resumed run and a run of
    another number of processes see the same batches. An image never meets itself among its negatives.
    """

    def __init__(
        self,
        records: Sequence[Record],
        towers: Towers,
        pictures: Pictures,
        views: Views,
        seed: int,
        extra: Extra = Extra(),
    ):
        self.pictures, self.views, self.seed, self.extra = pictures, views, seed, extra
        self.captions = Captions(records, towers)
        self.real = len(self.captions) - extra.count  # images of the set itself, which an epoch goes through

    def __len__(self) -> int:
        return len(self.captions)

    def steps(self, size: int, epoch: int) -> list[np.ndarray]:
        """One epoch as the images of each optimiser step.

        At most `size` of them, in steps as equal as can be: a small rest would have few negatives.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(self.real)
        steps = np.array_split(order, self.count_steps(size))
        return self._with_extra(steps, epoch) if self.extra.share else steps

    def count_steps(self, size: int) -> int:
        """Steps of an epoch, by the images of the set itself."""
        return -(-self.real // max(1, round(size * (1 - self.extra.share))))

    def _with_extra(self, steps: list[np.ndarray], epoch: int) -> list[np.ndarray]:
        """Each step with its share of the further images, which begin anew when all have been seen."""
        random = np.random.default_rng((self.seed, epoch, 2))
        share = self.extra.share
        counts = [max(1, round(len(step) * share / (1 - share))) for step in steps]
        rounds = -(-sum(counts) // self.extra.count)
        more = self.real + np.concatenate([random.permutation(self.extra.count) for _ in range(rounds)])
        parts = np.split(more[: sum(counts)], np.cumsum(counts)[:-1])
        return [random.permutation(np.concatenate(pair)) for pair in zip(steps, parts, strict=True)]

    def windows(self, size: int, epoch: int, parts: BatchShare, skip: int) -> Iterator[list[ImageTextBatch]]:
        """The micro-batches of one process, a list per optimiser step, from step `skip` on."""
        draws = np.random.default_rng((self.seed, epoch, 1)).random((len(self), 5), dtype=np.float32)
        steps = [
            [_share(chunk, parts) for chunk in np.array_split(step, parts.chunks(len(step)))]
            for step in self.steps(size, epoch)[skip:]
        ]
        pictures = self.pictures.load([rows for step in steps for rows in step])
        for step in steps:
            yield [self._batch(rows, next(pictures), draws) for rows in step]

    def _batch(self, rows: np.ndarray, pictures: Tensor, draws: np.ndarray) -> ImageTextBatch:
        absent = [row == NO_IMAGE or row in self.pictures.bad for row in rows.tolist()]
        some = np.maximum(rows, 0)  # a hole has the caption of any image, which will not count
        first, end = self.captions.starts[some], self.captions.starts[some + 1]
        keys = self.captions.keys[first + (draws[some, 4] * (end - first)).astype(np.int64)]
        input_ids, attention_mask = self.captions.padded(keys)
        keys[absent] = NO_IMAGE
        boxes = self.views.boxes(draws[some, :4])
        return ImageTextBatch(pictures, boxes, input_ids, attention_mask, rows, torch.from_numpy(keys), self.views)


def _share(rows: np.ndarray, parts: BatchShare) -> np.ndarray:
    """This process's images of a micro-batch; all processes have the same number, the last may be holes."""
    mine = rows[parts.rank :: parts.world]
    return np.pad(mine, (0, -(-len(rows) // parts.world) - len(mine)), constant_values=NO_IMAGE)
