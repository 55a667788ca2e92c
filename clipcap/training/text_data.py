"""Texts that stand in for photos, alone or beside captioned photos: as features that the dataset takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Features, Rows, SelectedRows
from clipcap.features.files import find_features, read_features, read_to_train
from clipcap.features.gap import USUAL_COSINE, measure_features, noise_of
from clipcap.runtime.messages import logger
from clipcap.training.config import CaptionerFeaturesConfig
from clipcap.training.data import first_images, training_features

MEANS_OF = 20_000  # rows that a mean embedding is taken of


@dataclass(frozen=True)
class JoinedRows:
    """The rows of one set, then those of another of the same width."""

    first: Rows
    second: Rows

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.first.shape[0] + self.second.shape[0], self.first.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers of the first."""
        return self.first.dtype

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        rows = torch.arange(self.shape[0])[index] if isinstance(index, slice) else index
        found, count = torch.empty(len(rows), self.shape[1]), self.first.shape[0]
        for part, base, start in ((rows < count, self.first, 0), (rows >= count, self.second, count)):
            if part.any():
                found[part] = base[rows[part] - start].float()
        return found


@dataclass(frozen=True)
class TextInputs:
    """The embeddings of texts that stand in for images.

    Attributes:
        rows: [R, D], the texts, as the encoder gave them.
        members: rows of each image's texts, int64 [R], those of an image side by side.
        starts: where those of each of G images begin, int64 [G + 1].
        photos: rows of the joint features that are photos and come before the G images.
        row_of: of each caption of the joint features its own text's row, int64 [M]; -1 where it is of a photo.
        noise: deviation per dimension.
        shift: [D], added to each text of unit length, or None.
    """

    rows: Rows
    members: np.ndarray
    starts: np.ndarray
    photos: int
    row_of: np.ndarray
    noise: float
    shift: Tensor | None

    def of_image(self, image: int) -> np.ndarray:
        """The rows of the texts of an image, int64."""
        return self.members[self.starts[image] : self.starts[image + 1]]

    @property
    def images(self) -> int:
        """G."""
        return len(self.starts) - 1


def text_features(
    config: CaptionerFeaturesConfig, noise: str, seed: int
) -> tuple[Features, Features | None, TextInputs]:
    """What text-only training learns from: the features to train on, those to validate on, and the texts' inputs.

    Args:
        config: folders of texts, and files of captioned photos for mixed training.
        noise: the deviation per dimension, or `auto`.
        seed: of the split, where --val is a share of the photos.
    Raises:
        ClipcapError: no texts, two sets of them, other encoders, or a share of nothing to validate on.
    """
    paths = [config.data] if isinstance(config.data, str) else list(config.data)
    texts = [path for path in paths if (find_features(path) / "text_emb").is_dir()]
    photos = [path for path in paths if path not in texts]
    if len(texts) != 1 or len(photos) > 1:
        raise ClipcapError(
            f"--objective text takes one folder of texts in --data, and for mixed training one file of captioned "
            f"photos beside it; here are {len(texts)} and {len(photos)}: make texts with `clipcap parse texts`"
        )
    features = first_images(read_features(texts[0], config.clip_model_type, tower="text"), config.limit)
    base, val = _photos(config, photos, features, seed)
    shift = None
    unlabelled = None
    if config.photos:
        unlabelled = read_features(config.photos, config.clip_model_type)
        _check(unlabelled, features)
        shift = _mean(unlabelled) - _mean(features)
    deviation = _noise(noise, [base, unlabelled, val], features.dim, shift is not None)
    joint, inputs = _joined(base, features, deviation, shift)
    return joint, val, inputs


def _photos(
    config: CaptionerFeaturesConfig, photos: Sequence[str], texts: Features, seed: int
) -> tuple[Features | None, Features | None]:
    """The captioned photos of mixed training, and those to validate on."""
    if photos:
        base, val = training_features(config.of_photos(photos[0]), seed, 0)
        if base.meta.tokens:
            raise ClipcapError(
                f"{base.path}: holds tokens of its photos, and texts have none: for --objective text parse them "
                f"without --tokens"
            )
        _check(base, texts)
        return base, val
    if config.val is None:
        return None, None
    if not Path(config.val).exists():
        raise ClipcapError(
            f"--val {config.val}: texts are validated on captioned photos: name a feature file of some"
        )
    val = read_to_train(config.val, config.clip_model_type)
    _check(val, texts)
    return None, val


def _check(photos: Features, texts: Features) -> None:
    meta = texts.meta
    check_same_encoder(
        photos.meta, photos.dim, meta.encoder, meta.encoder_weights_id, texts.dim, photos.path, f"texts {texts.path}"
    )


def _mean(features: Features) -> Tensor:
    """The mean of its rows at unit length, [D]."""
    step = max(1, features.num_images // MEANS_OF)
    return F.normalize(features.rows(np.arange(0, features.num_images, step)), dim=1).mean(dim=0)


def _noise(noise: str, pairs: Sequence[Features | None], width: int, shifted: bool) -> float:
    """The deviation per dimension: a number, or what captioned photos of the first set that has some say."""
    if noise != "auto":
        return float(noise)
    for features in pairs:
        if features is not None and len(np.unique(features.caption_rows[:1000])) > 1:
            gap = measure_features(features)
            found = gap.noise(shifted)
            cosine = gap.shifted if shifted else gap.paired
            logger.info(
                f"noise {found:.4f} per dimension, from the cosine {cosine:.3f} of {gap.pairs} captioned photos"
            )
            return found
    found = noise_of(USUAL_COSINE, width)
    logger.warning(
        f"noise {found:.4f} per dimension, from CLIP's usual cosine {USUAL_COSINE}: no captioned photo to measure it "
        f"on; give some in --val, or a number in --noise"
    )
    return found


def _joined(
    photos: Features | None, texts: Features, noise: float, shift: Tensor | None
) -> tuple[Features, TextInputs]:
    """Features with a row for each photo, then one for each image that texts describe."""
    _, group_of = np.unique(texts.row_images, return_inverse=True)  # [R]
    members = np.argsort(group_of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(group_of))])
    first = members[starts[:-1]]  # [G]
    count = 0 if photos is None else photos.num_images
    rows: Rows = SelectedRows(texts.embeddings, torch.from_numpy(first))
    captions: Sequence[str] = texts.captions
    caption_rows, row_of = group_of[texts.caption_rows] + count, np.asarray(texts.caption_rows)
    ids = [texts.image_ids[int(row)] for row in first]
    images = np.arange(len(first))
    if photos is not None:
        rows, captions = JoinedRows(photos.embeddings, rows), [*photos.captions, *texts.captions]
        caption_rows = np.concatenate([photos.caption_rows, caption_rows])
        row_of = np.concatenate([np.full(len(photos.caption_rows), -1), row_of])
        ids = [*photos.image_ids, *ids]
        images = np.concatenate([photos.row_images, images + int(photos.row_images.max()) + 1])
    joint = replace(
        texts, embeddings=rows, captions=captions, caption_rows=caption_rows, image_ids=ids,
        image_paths=[None] * len(ids), images=images,
    )  # fmt: skip
    return joint, TextInputs(texts.embeddings, members, starts, count, row_of, noise, shift)
