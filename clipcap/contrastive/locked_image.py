"""Train a text tower for the stored features of an image network, which stays as it is (LiT, arXiv 2111.07991)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from clipcap.contrastive.config import LockedImageConfig
from clipcap.contrastive.dataset import Pictures, Views
from clipcap.contrastive.image_cache import NO_IMAGE
from clipcap.contrastive.task import ContrastiveTask
from clipcap.contrastive.towers.locked_image import LockedImageTowers, locked_image_towers
from clipcap.contrastive.train import run
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.images.ref import ImageRef
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import counted, printable
from clipcap.sources.record import Record
from clipcap.training.accelerator import make_accelerator
from clipcap.training.data import check_finite, training_features
from clipcap.training.run_folder import check_run_folder

NOTHING = np.zeros(0, np.int64)  # rows


@dataclass
class StoredVectors:
    """The stored vectors of records, in the place of their pictures.

    Args:
        records: N of them.
        features: that hold the vectors.
        rows: int64 [N], the row of each record.
    """

    records: Sequence[Record]
    features: Features
    rows: np.ndarray
    bad: dict[int, str] = field(init=False, default_factory=dict)  # what is stored can be read

    def fill(self, quiet: bool) -> None:
        """Nothing: vectors are in memory, or mapped."""

    def load(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """The vectors of each batch in turn, float32 [B, W]; zeros where there is no image."""
        for numbers in batches:
            vectors = self.features.rows(self.rows[np.maximum(numbers, 0)])
            yield vectors.masked_fill(torch.from_numpy(numbers == NO_IMAGE)[:, None], 0)


class AsStored:
    """Vectors are looked at as they are."""

    def boxes(self, uniform: np.ndarray) -> Tensor:
        """None, for each of B: [B, 0]."""
        return torch.zeros(len(uniform), 0)

    def __call__(self, pictures: Tensor, boxes: Tensor) -> Tensor:
        """[B, W] → [B, W]."""
        return pictures


class LockedImageTask(ContrastiveTask):
    """The training of a text tower on stored features.

    Args:
        config: of the run.
        towers: with their initial weights.
        train, val: the features to train on, and those held out.
        accelerator: of the run.
    """

    hold_out = "--val 0.1"

    def __init__(
        self,
        config: LockedImageConfig,
        towers: LockedImageTowers,
        train: Features,
        val: Features | None,
        accelerator: Accelerator,
    ):
        self.options = config
        self._train, self._val = _by_image(train), _by_image(train.subset_by_row(NOTHING) if val is None else val)
        if val is not None and not self._val[2]:
            raise ClipcapError(f"{val.path}: no image has a caption, so that none can be validated on: pass another")
        records = [
            Record(str(image_id), ImageRef(Path(str(image_id))), captions, split)
            for split, (_, _, named) in (("train", self._train), ("val", self._val))
            for image_id, captions in named
        ]
        super().__init__(config.as_pairs(), towers, records, accelerator)

    def _training_pictures(self, records: Sequence[Record]) -> tuple[Pictures, Views]:
        features, rows, _ = self._train
        return StoredVectors(records, features, rows), AsStored()

    def _held_out_pictures(self, records: Sequence[Record]) -> Pictures:
        features, rows, _ = self._val
        return StoredVectors(records, features, rows)

    def identity(self) -> dict[str, Any]:
        """As of any contrastive training, and the dropout."""
        return {**super().identity(), "dropout": self.options.dropout}

    def warm_start(self, folder: Path) -> str:
        """The flag that starts another run from a checkpoint's weights."""
        return f"--weights_dir {folder}"


def _by_image(features: Features) -> tuple[Features, np.ndarray, list[tuple[str, tuple[str, ...]]]]:
    """The features, the first row of each image that has captions, and its id and captions; logs those without."""
    captions: dict[int, list[str]] = {}
    first: dict[int, int] = {}
    for row, (image, texts) in enumerate(zip(features.row_images.tolist(), features.captions_by_row())):
        first.setdefault(image, row)
        captions.setdefault(image, []).extend(texts)
    rows = [row for image, row in first.items() if captions[image]]
    named = [(features.image_ids[row], tuple(captions[image])) for image, row in first.items() if captions[image]]
    if left_out := len(first) - len(rows):
        logger.info(f"{printable(str(features.path))}: {counted(left_out, 'image')} without captions left out")
    return features, np.array(rows, np.int64), named


@writes_to("config.loop.out_dir")
def train_locked_image(config: LockedImageConfig) -> Path:
    """Train a text tower, and a projection, on stored features and their captions.

    Returns:
        the folder of the `best` checkpoint: by recall@10 of the held-out images, or by the training loss.
    Raises:
        ClipcapError: a run that would be replaced, bad features, a loss that is not finite; what was saved stays.
    """
    check_run_folder(config.loop)
    accelerator = make_accelerator(config.loop, config.flat())
    features, val = training_features(config.features, config.loop.seed, 0)
    check_finite(features)
    set_seed(config.loop.seed)
    task = LockedImageTask(config, locked_image_towers(config, features), features, val, accelerator)
    logger.info(task.describe())
    return run(task, "contrastive features", config.flat())
