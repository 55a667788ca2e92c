"""Splitting features by image, so that no image is both learnt and tested."""

from __future__ import annotations

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features


def split_by_image(features: Features, share: float, seed: int) -> tuple[Features, Features]:
    """(train, val): a `share` of the images is held out for val, the same ones for the same seed."""
    from sklearn.model_selection import train_test_split  # takes a second to import, and few commands split

    images = np.unique(features.row_images)
    try:
        _, held_out = train_test_split(images, test_size=share, random_state=seed)
    except ValueError as error:
        raise ClipcapError(
            f"{features.path}: a share of {share} of {len(images)} images leaves train or val empty: "
            "choose another share between 0 and 1"
        ) from error
    in_val = np.isin(features.row_images, held_out)
    return features.subset_by_row(np.flatnonzero(~in_val)), features.subset_by_row(np.flatnonzero(in_val))
