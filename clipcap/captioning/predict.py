"""Caption photos or precomputed features in batches; print, write or set beside the photos."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clipcap.captioning.batches import row_name, stored_embeddings
from clipcap.captioning.captioner import Captioner, load_captioner
from clipcap.captioning.config import CaptionConfig, LoadConfig, LoadOptions, OutputConfig
from clipcap.captioning.outputs import _output
from clipcap.captioning.text import collapsed
from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.images.read import find_images
from clipcap.models.encoders.encode_images import EncodedImages, encode_images
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import printable

WATCHED = 1000  # images whose captions are compared, to see whether all are alike


@writes_to("config.output.out")
def predict(config: CaptionConfig, img: Sequence[str], load: Callable[[], Captioner] | None = None) -> int:
    """Caption everything asked for; images that cannot be read are named on stderr and left out.

    Args:
        config: what to caption, and where the captions go.
        img: photos, globs, folders.
        load: gives the captioner, once there is something to caption (default: the one that `config` names).
    Returns:
        how many images could not be captioned.
    Raises:
        ClipcapError: nothing to caption, or no checkpoint.
    """
    output, decoding = config.output, config.decode
    if bool(img) == bool(output.features):
        raise ClipcapError("pass photos with --img, or a feature file with --features (one of the two)")
    if output.sidecar and output.out:
        raise ClipcapError("--sidecar and --out are two places for the captions: choose one")
    paths = _without_sidecar(find_images(img), output) if img else []
    if img and not paths:
        return 0
    captioner = load() if load else load_captioner(LoadConfig.of(**config.load.flat()))
    if img or decoding.rerank == "clip":
        _ = captioner.encoder  # now, so that its errors are not blamed on the first photo
    if output.features:
        features = _checked_features(captioner, config.load, output.features)
        batches = stored_embeddings(features, range(features.num_images), output.batch_size)
        count, name = features.num_images, partial(row_name, features)
    else:
        batches = _of_photos(captioner, paths, output.batch_size, upright=decoding.recipe != "reference")
        count, name = len(paths), lambda number: str(paths[number])
    batches = _progress(batches, -(-count // output.batch_size))
    failed = captioned = 0
    remarks: Counter[str] = Counter()
    watched: dict[bytes, str] = {}  # a caption per embedding: copies of a photo rightly share theirs
    with _output(output, many=len(paths) != 1) as emit:
        for batch, captions in captioner.caption_batches(batches, decoding):
            for fault in batch.bad.values():
                logger.warning(f"skipped {printable(str(fault))}")
            failed += len(batch.bad)
            captioned += len(captions)
            remarks.update(batch.remarks)
            for number, of_image in zip(batch.numbers, captions):
                emit(name(number), of_image)
            if batch.embeddings is not None and len(watched) < WATCHED:
                rows = batch.embeddings.cpu().numpy()
                watched |= {row.tobytes(): of_image[0].text for row, of_image in zip(rows, captions)}
    for remark, count in remarks.items():
        logger.info(f"{count:,} image{'s' * (count != 1)} {remark}")
    if failed and len(paths) > 1:
        logger.info(
            f"{captioned:,} of {captioned + failed:,} images captioned, {failed:,} left out for the reasons above"
        )
    _warn_if_collapsed(list(watched.values()))
    return failed


def _warn_if_collapsed(captions: list[str]) -> None:
    """Say on stderr where different images were given the same captions."""
    if different := collapsed(captions):
        logger.warning(
            f"only {different} different caption{'s' * (different > 1)} for {len(captions)} different "
            f"images: the model hardly looks at them; it needs more training, or was trained with another "
            f"--clip_model_type or --normalize_prefix than it is used with"
        )


def _without_sidecar(paths: list[Path], config: OutputConfig) -> list[Path]:
    """The photos to caption; with --sidecar those that have their .txt already are left out."""
    if not config.sidecar:
        return paths
    photos = defaultdict(list)
    for path in paths:
        photos[path.with_suffix(".txt")].append(path)
    for sidecar, of_one in photos.items():
        if len(of_one) > 1:
            raise ClipcapError(f"{sidecar} would be of {of_one[0]} and of {of_one[1]}: rename one, or use --out")
    wanted = [path for path in paths if config.overwrite or not path.with_suffix(".txt").exists()]
    if len(wanted) < len(paths):
        kept = len(paths) - len(wanted)
        logger.info(f"{kept:,} of {len(paths):,} photos have a .txt already (--overwrite replaces them)")
    return wanted


def _of_photos(
    captioner: Captioner, paths: Sequence[Path], batch_size: int, upright: bool
) -> Iterator[EncodedImages]:
    threads = min(8, os.cpu_count() or 1)
    return encode_images(captioner.encoder, paths, batch_size, upright=upright, threads=threads)


def _checked_features(captioner: Captioner, load: LoadOptions, path: str) -> Features:
    """A feature file of the captioner's encoder."""
    features = read_features(path, encoder=load.clip_model_type)
    if features.encoder_note:
        logger.info(printable(features.encoder_note))
    own = captioner.model.config
    check_same_encoder(
        features.meta, features.dim, own.encoder, own.encoder_weights_id, own.clip_dim, path,
        f"the checkpoint {load.load_pt}",
    )  # fmt: skip
    return features


def _progress(batches: Iterable[Any], count: int) -> Iterable[Any]:
    """The batches behind a progress bar, where there are several and a terminal to show it."""
    return tqdm(batches, total=count, unit="batch", desc="captioning", disable=None if count > 1 else True)
