"""Options of an image-caption set on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import LARGEST_SEED, Options, at_least, option, within


@dataclass(frozen=True)
class SourceConfig(Options, group="data"):
    """An image-caption set on disk, and how its images are read."""

    data_path: str = option("", "folder (or file) of the image-caption set")
    captions: str | None = option(None, "caption file, if it is not in its usual place under --data_path")
    images: str | None = option(None, "folder of the photos, if it is not in its usual place")
    image_column: str | None = option(None, "column of the image paths (custom data; default: guessed)")
    caption_column: str | None = option(None, "column of the captions (custom data; default: guessed)")
    train_size: float | None = option(
        None, "share of the images to train on, the rest is val (sets without a split of their own)"
    )
    seed: int = option(42, "seed of the split")
    limit: int = option(0, "read the first images alone, of each split so many, for a try (0: all)")
    workers: int | None = option(
        None, "processes that decode images (default: the cores, at most 8; on a CPU 1)", group="machine"
    )
    max_bad: float = option(0.05, "share of missing or unreadable images above which the run ends with an error")
    frame: Literal["first", "middle"] = option("first", "which frame of an animation to read")

    def __post_init__(self) -> None:
        at_least("limit", self.limit, 0)
        within("max_bad", self.max_bad, 0, 1)
        within("seed", self.seed, 0, LARGEST_SEED)
        if self.train_size is not None and not 0 < self.train_size < 1:
            raise ClipcapError(f"--train_size is a share between 0 and 1, got {self.train_size}")
        if self.workers is not None:
            at_least("workers", self.workers, 0)
