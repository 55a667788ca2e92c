"""The feature file: embeddings of images and their captions, as one pickle or as a memory-mapped folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import clipcap
from clipcap.atomic import standing
from clipcap.errors import ClipcapError
from clipcap.features.check import check_same_encoder, guess_encoder, with_encoder
from clipcap.features.feature_set import FeatureMeta, Features
from clipcap.features.folder import read_folder, write_folder
from clipcap.features.pickle_file import read_pickle, write_pickle
from clipcap.features.split import split_by_image

__all__ = [
    "FeatureMeta",
    "Features",
    "check_same_encoder",
    "guess_encoder",
    "read_features",
    "split_by_image",
    "write_features",
]


def read_features(path: str | Path, encoder: str | None = None) -> Features:
    """Open a feature pickle or folder: ours, the original's, the food fork's, or clip-retrieval's.

    Args:
        path: `.pkl` file or folder.
        encoder: the encoder of a file that does not say it; guessed from the width where it is not given.
    Raises:
        ClipcapError: missing, truncated, hostile, or no feature file; or `encoder` contradicts it.
    """
    path = standing(Path(path))
    if not path.exists():
        raise ClipcapError(f"{path}: no such feature file: parse the images first, or mend the path")
    try:
        features = read_folder(path) if path.is_dir() else read_pickle(path)
    except OSError as error:
        raise ClipcapError(f"{path}: cannot be read ({error.strerror or error}): check the file") from error
    return with_encoder(features, encoder)


def write_features(
    path: str | Path,
    *,
    embeddings: np.ndarray | torch.Tensor,
    image_ids: Sequence[str],
    image_paths: Sequence[str | None],
    captions: Sequence[Sequence[str]],
    meta: FeatureMeta,
) -> None:
    """Write features, whole or not at all; the same content gives the same bytes.

    Args:
        path: `NAME.pkl` for a pickle that the original trainer reads, else a folder of memory-mapped shards.
        embeddings: [N, D], for a folder a memory map of any size; stored as float16 where they are, else float32.
        image_ids: N, one per row.
        image_paths: N, where the images lay.
        captions: N, the captions of each row.
        meta: what is known of them; dtype and versions are filled in.
    Raises:
        ClipcapError: it could not be written; what lay at `path` before is untouched.
    """
    path = Path(path)
    if isinstance(embeddings, torch.Tensor):
        half = embeddings.dtype == torch.float16
        embeddings = embeddings.detach().cpu().to(torch.float16 if half else torch.float32).numpy()
    elif embeddings.dtype not in (np.float16, np.float32):
        embeddings = embeddings.astype(np.float32)
    if embeddings.ndim != 2 or not len(embeddings) == len(image_ids) == len(image_paths) == len(captions):
        raise ValueError("embeddings must be [N, D], with N image ids, paths and tuples of captions")
    meta = replace(meta, dtype=embeddings.dtype.name, clipcap_version=clipcap.__version__)
    write = write_pickle if path.suffix == ".pkl" else write_folder
    write(path, embeddings, image_ids, image_paths, captions, meta)
