"""Pictures for training: decoded in worker processes to small squares of bytes, kept in memory where they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from clipcap.images.read import ImageError, open_image
from clipcap.images.workers import decoders, report_lost_workers
from clipcap.models.encoders.clip_preprocess import crop_extreme_aspect
from clipcap.runtime.progress import no_bar
from clipcap.sources.record import Record

NO_IMAGE = -1  # the number of no picture
BATCH = 64  # pictures that a worker decodes together for the cache


def square(image: Image.Image, side: int) -> np.ndarray:
    """An RGB image as CLIP looks at it: shorter side scaled to `side` (bicubic), middle cut out: uint8 [S, S, 3]."""
    image = crop_extreme_aspect(image)
    width, height = (length * side // min(image.size) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)))


@dataclass
class ImageCache:
    """Squares of the images of records, by number.

    Args:
        records: whose images.
        side: S, pixels of a side.
        frame: which one of an animation.
        workers: processes that decode (`decoders`).
        cache_mb: keep them all in memory if they take at most this.
        device: where they are used.
    """

    records: Sequence[Record]
    side: int
    frame: Literal["first", "middle"]
    workers: int | None
    cache_mb: int
    device: torch.device
    bad: dict[int, str] = field(init=False, default_factory=dict)  # pictures that cannot be read, and why
    _cache: Tensor | None = field(init=False, default=None)

    def fill(self, quiet: bool) -> None:
        """Decode all into memory, if they may be kept there."""
        count = len(self.records)
        if count * self.side**2 * 3 > self.cache_mb * 1e6:
            return
        batches = np.array_split(np.arange(count), -(-count // BATCH)) if count else []
        cache = torch.empty(count, self.side, self.side, 3, dtype=torch.uint8)
        with tqdm(total=count, desc="decoding", unit="img", disable=no_bar(quiet)) as bar:
            for rows, pictures in zip(batches, self.load(batches)):
                cache[rows] = pictures
                bar.update(len(rows))
        self._cache = cache

    def load(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """The pictures of each batch in turn: uint8 [B, S, S, 3]; those that cannot be read are black and `bad`."""
        if self._cache is not None:
            yield from (self._cache[rows] for rows in batches)
            return
        decoder = _Decoder(self.records, self.side, self.frame, batches)
        with report_lost_workers():
            for pictures, bad in decoders(decoder, self.workers, self.device):
                self.bad.update(bad)
                yield pictures


@dataclass(frozen=True)
class _Decoder(Dataset):
    """Whole batches of pictures; runs in worker processes."""

    records: Sequence[Record]
    side: int
    frame: Literal["first", "middle"]
    batches: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[int, str]]:
        rows, bad = self.batches[index].tolist(), {}
        pictures = np.zeros((len(rows), self.side, self.side, 3), np.uint8)
        for place, row in enumerate(rows):
            if row == NO_IMAGE:
                continue
            try:
                pictures[place] = square(open_image(self.records[row].image, frame=self.frame), self.side)
            except ImageError as error:
                bad[row] = error.reason
        return torch.from_numpy(pictures), bad
