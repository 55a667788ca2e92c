"""Splitting features by image, so that no image is both learnt and tested."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.runtime.disk_arrays import blocks, scratch, where
from clipcap.sources.split import held_out


def split_features(features: Features, share: float, seed: int) -> tuple[Features, Features]:
    """(train, val): a `share` of the images is held out for val, the same ones for the same seed.

    Both look into `features`; which rows they have is kept in temporary files.
    """
    in_val = rows_held_out(features.row_images, share, seed, features.path)
    return features.subset_by_row(where(in_val, False)), features.subset_by_row(where(in_val))


def rows_held_out(row_images: np.ndarray, share: float, seed: int, path: Path) -> np.ndarray:
    """The rows of the held-out images, bool [N]; the images are those of sklearn's `train_test_split`.

    Args:
        row_images: a number for each row's image, int64 [N], in the order of their appearance.
        share: of the images to hold out.
        seed: the same one holds out the same images.
        path: of the features, for the error.
    """
    count = int(row_images.max()) + 1
    size = ceil(share * count) if 0 < share < 1 else count
    if size == count:
        raise ClipcapError(
            f"{path}: a share of {share} of {count} images leaves train or val empty: "
            "choose another share between 0 and 1"
        )
    images, found = held_out(count, size, seed), scratch(len(row_images), bool)
    for block in blocks(len(row_images)):
        found[block] = images[row_images[block]]
    return found


def split_path(out: Path, split: str) -> Path:
    """Where a split goes: NAME_val for `out` NAME or NAME_train, with `.pkl` at its end if `out` has it."""
    stem = out.name.removesuffix(".pkl")
    return out.with_name(f"{stem.removesuffix('_train')}_{split}{out.name[len(stem) :]}")
