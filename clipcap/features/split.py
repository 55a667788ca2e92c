"""Splitting features by image, so that no image is both learnt and tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features


def split_by_image(features: Features, share: float, seed: int) -> tuple[Features, Features]:
    """(train, val): a `share` of the images is held out for val, the same ones for the same seed."""
    in_val = rows_held_out(features.row_images, share, seed, features.path)
    return features.subset_by_row(np.flatnonzero(~in_val)), features.subset_by_row(np.flatnonzero(in_val))


def rows_held_out(row_images: np.ndarray, share: float, seed: int, path: Path) -> np.ndarray:
    """Which rows are of the images that are held out, bool [N].

    Args:
        row_images: a number for each row's image, int64 [N], in the order of their appearance.
        share: of the images to hold out.
        seed: the same one holds out the same images.
        path: of the features, for the error.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import, and few commands split

    images = np.unique(row_images)
    try:
        _, held_out = train_test_split(images, test_size=share, random_state=seed)
    except ValueError as error:
        raise ClipcapError(
            f"{path}: a share of {share} of {len(images)} images leaves train or val empty: "
            "choose another share between 0 and 1"
        ) from error
    return np.isin(row_images, held_out)


def split_path(out: Path, split: str) -> Path:
    """Where a split goes: NAME_val for `out` NAME or NAME_train, with `.pkl` at its end if `out` has it."""
    stem = out.name.removesuffix(".pkl")
    return out.with_name(f"{stem.removesuffix('_train')}_{split}{out.name[len(stem) :]}")
