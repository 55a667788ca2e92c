"""The features that a run trains on and those it holds out: opened and checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Features, hashed
from clipcap.features.files import read_to_train
from clipcap.features.split import split_features
from clipcap.models.encoders.names import is_resnet
from clipcap.runtime.disk_arrays import blocks
from clipcap.runtime.messages import logger
from clipcap.runtime.text import printable
from clipcap.sources.generated import refuse_generated
from clipcap.training.config import FeaturesConfig

COMPARED_TOGETHER = 8192  # embeddings
SAME_COSINE = 0.999  # of one image encoded twice; float16 and other batches leave more than 0.9999


def training_features(config: FeaturesConfig, seed: int, overfit: int) -> tuple[Features, Features | None]:
    """The features to train on, and those to validate on or None; logs what is not known of them.

    Args:
        config: where they lie.
        seed: of the split, where --val is a share.
        overfit: images of the self-test, 0 without it.

    Raises:
        ClipcapError: they cannot be read, are of different encoders, or not finite.
    """
    features, val = open_features(config, seed, overfit)
    if val is not None:
        check_finite(val)
        if val is not features and not overfit:
            refuse_generated(val.image_paths)
    for note in dict.fromkeys(f.encoder_note for f in (features, val) if f is not None and f.encoder_note):
        logger.info(printable(note))
    for warning in data_warnings(config, features, val):
        logger.warning(printable(warning))
    return features, val


def open_features(config: FeaturesConfig, seed: int = 42, overfit: int = 0) -> tuple[Features, Features | None]:
    """The training and validation features that the options name, checked against each other."""
    features = first_images(read_to_train(config.data, config.clip_model_type), config.limit)
    if config.is_rn and is_resnet(features.meta.encoder) is False:
        guessed = features.meta.encoder_guessed
        advice = "name the encoder by --clip_model_type" if guessed else "parse the images with a ResNet"
        raise ClipcapError(
            f"--is_rn: {config.data} {'is taken for' if guessed else 'holds'} features of {features.meta.encoder} "
            f"({features.dim} wide), which is not a ResNet: leave the flag out, or {advice}"
        )
    if overfit:
        few = one_caption_each(features, overfit)
        return few, few
    val = config.val or _sibling(config.data)
    if val is None:
        return features, None
    if _is_share(val):
        return split_features(features, float(val), seed)
    held_out = read_to_train(val, config.clip_model_type)
    meta = features.meta
    check_same_encoder(
        held_out.meta, held_out.dim, None if meta.encoder_guessed else meta.encoder, meta.encoder_weights_id,
        features.dim, val, f"the training features {config.data}",
    )  # fmt: skip
    return features, held_out


def first_images(features: Features, count: int) -> Features:
    """The rows of the first images, so many, in the file's order; all where `count` is 0."""
    if not count:
        return features
    _, first = np.unique(features.row_images, return_index=True)
    chosen = features.row_images[np.sort(first)[:count]]
    return features.subset_by_row(np.flatnonzero(np.isin(features.row_images, chosen)))


def data_warnings(config: FeaturesConfig, features: Features, val: Features | None) -> list[str]:
    """What may be wrong with the features: an encoder of unknown kind, images both in training and validation."""
    warnings = []
    if config.is_rn and is_resnet(features.meta.encoder) is None:
        encoder = features.meta.encoder or "not known"
        warnings.append(
            f"--is_rn cannot be checked: the encoder of {config.data} is {encoder}, which does not tell "
            f"whether it is a ResNet"
        )
    shared = 0 if val is None or val is features else shared_images(features, val)
    if val is not None and shared:
        warnings.append(
            f"{shared} of {len(np.unique(val.row_images))} images of {val.path} are in {config.data} too: "
            f"validation will look better than it is; hold out other images, or a share of these (--val 0.1)"
        )
    return warnings


def shared_images(features: Features, val: Features) -> int:
    """Images of `val` that `features` has too: of the same path or id, and with the same embedding.

    Ids alone would not do: those of different sets may coincide.
    """
    both = [_same_names(getattr(features, names), getattr(val, names)) for names in ("image_ids", "image_paths")]
    pairs = np.unique(np.concatenate(both), axis=0)
    found = [np.empty(0, np.int64)]
    for part in np.array_split(pairs, -(-len(pairs) // COMPARED_TOGETHER) or 1):
        alike = F.cosine_similarity(features.rows(part[:, 0]), val.rows(part[:, 1])) > SAME_COSINE
        found.append(val.row_images[part[alike.numpy(), 1]])
    return len(np.unique(np.concatenate(found)))


def _same_names(learnt: Sequence[str | None], held_out: Sequence[str | None]) -> np.ndarray:
    """Rows of one name, int64 [pairs, 2]; compared as numbers, since names of large sets would fill the memory."""
    numbers = hashed(held_out)
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    found = [np.empty((0, 2), np.int64)]
    for block in blocks(len(learnt) if len(numbers) else 0):
        names = learnt[block]
        wanted = hashed(names)
        place = np.searchsorted(numbers, wanted, side="right") - 1
        same = [row for row in np.flatnonzero(numbers[place] == wanted).tolist() if names[row] is not None]
        found.append(np.stack([block.start + np.array(same, np.int64), order[place[same]]], axis=1))
    return np.concatenate(found)


def check_finite(features: Features) -> None:
    """Refuse what an epoch would end in, as validation, or what all images would be measured by.

    Raises:
        ClipcapError: names the first image whose features are not finite.
    """
    if len(bad := features.non_finite_rows()):
        image = features.image_ids[int(bad[0])]
        raise ClipcapError(f"{features.path}: the features of image {image} are not finite: parse the images again")


def one_caption_each(features: Features, images: int) -> Features:
    """The first caption of each of the first images."""
    _, first = np.unique(features.image_index, return_index=True)
    first = np.sort(first)[:images]
    few = features.subset_by_row(features.caption_rows[first])
    return replace(few, captions=[features.captions[int(i)] for i in first], caption_rows=np.arange(len(first)))


def _sibling(data: str) -> str | None:
    """The `*_val` file that parsing writes beside a `*_train` file."""
    path = Path(data)
    sibling = path.with_name(path.name.replace("_train", "_val"))
    return str(sibling) if sibling != path and sibling.exists() else None


def _is_share(text: str) -> bool:
    try:
        share = float(text)
    except ValueError:
        return False
    if not 0 < share < 1:
        raise ClipcapError(f"--val {text}: a share of the images lies between 0 and 1 (0.1)")
    return True
