"""The neighbours of a training set in a datastore: searched once, then kept beside the features."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clipcap.features.feature_set import Features
from clipcap.prompts.datastore import SAMPLED, Datastore, Near
from clipcap.runtime.disk_arrays import blocks, cached_arrays, write_arrays
from clipcap.runtime.files import current_path
from clipcap.runtime.progress import no_bar

LISTED = 16  # neighbours of an image, of which training samples
TOGETHER = 4096  # images searched for at a time
MANY = 20_000  # images from which a bar shows how far it is


def neighbours(features: Features, store: Datastore, queries: Tensor | None = None) -> Near:
    """The neighbours of each row of a training set: rows int32 [N, 16], cosines float32 [N, 16].

    They are kept beside the features, under a fingerprint of both sets and their encoder.

    Args:
        features: N rows with captions.
        store: is searched.
        queries: [N, D], the images as a second encoder sees them (default: the features).
    """
    fingerprint = _fingerprint(features, store, queries)
    file = cached_arrays(
        _place(features, fingerprint), fingerprint, partial(_write, features, store, queries), quiet=True
    )
    shape = (features.num_images, LISTED)
    return Near(file.arrays["rows"].reshape(shape), file.arrays["scores"].reshape(shape))


def _place(features: Features, fingerprint: str) -> Path:
    place = current_path(features.path)
    name = f"neighbours-{fingerprint[:12]}.arrays"
    return place / "cache" / name if place.is_dir() else place.with_name(f"{place.name}.{name}")


def _fingerprint(features: Features, store: Datastore, queries: Tensor | None) -> str:
    """Of the features' rows, by a sample, and of the datastore."""
    rows = np.unique(np.linspace(0, features.num_images - 1, SAMPLED, dtype=np.int64))
    sample = features.rows(rows) if queries is None else queries[torch.from_numpy(rows)]
    captions = [features.captions_of(row) for row in rows.tolist()]
    parts = (store.fingerprint(), features.num_images, len(features.captions), LISTED, captions)
    return hashlib.blake2b(repr(parts).encode() + sample.numpy().tobytes(), digest_size=16).hexdigest()


def _write(features: Features, store: Datastore, queries: Tensor | None, draft: BinaryIO, fingerprint: str) -> None:
    rows, scores = [], []
    hidden = no_bar(features.num_images < MANY)
    with tqdm(total=features.num_images, desc="neighbours", unit="image", leave=False, disable=hidden) as bar:
        for part in blocks(features.num_images, TOGETHER):
            wanted = features.rows(part) if queries is None else queries[part]
            own = features.captions_by_row(part.start, part.stop) if store.tower == "text" else None
            near = store.near(wanted, LISTED, own)
            rows.append(near.rows.ravel())
            scores.append(near.scores.ravel())
            bar.update(part.stop - part.start)
    write_arrays(draft, [("rows", np.int32, rows), ("scores", np.float32, scores)], {"fingerprint": fingerprint})
