"""Photos as they lie in folders, to be indexed: each is encoded once, and again only where its file has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta, Features
from clipcap.images.folders import walk
from clipcap.images.read import find_images, is_image_file
from clipcap.images.workers import at_once
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.encode_images import encode_images
from clipcap.models.encoders.load import load_encoder
from clipcap.retrieval.config import IndexConfig
from clipcap.retrieval.exact import gather_rows
from clipcap.retrieval.index import CONFIG, Index
from clipcap.runtime.files import current_path, replaced_file
from clipcap.runtime.interruption import states_what_is_left
from clipcap.runtime.json_text import to_json
from clipcap.runtime.messages import logger
from clipcap.runtime.progress import no_bar
from clipcap.runtime.text import counted, printable

STATE = "photos.json"  # in the index: size and time of change of each photo
USUAL_ENCODER = "ViT-B/32"
BATCH, TOGETHER = 32, 256  # photos encoded, and stored, together
Stamp = tuple[int, int]  # size in bytes, time of change in ns


class Photo(NamedTuple):
    """A photo below the folders that are indexed."""

    name: str  # its path from the folder
    path: Path
    stamp: Stamp


def is_photo_folder(source: str | Path) -> bool:
    """Whether a source is a folder of photos, and no folder of features."""
    folder = Path(source)
    if not folder.is_dir() or any((folder / name).is_dir() for name in ("img_emb", "text_emb")):
        return False
    return any(is_image_file(path) for path in walk(folder))


def photo_features(folders: Sequence[str | Path], config: IndexConfig) -> Features:
    """The embeddings of all photos below folders; those that the index at `config.out` has are taken from there.

    What is encoded lies beside the index until it is written, so that an interrupted run continues.

    Raises:
        ClipcapError: no photo can be read, or the encoder cannot be loaded.
    """
    if config.append or config.tower == "text":
        raise ClipcapError("photos are updated by the same command without --append, and by their image tower")
    photos, out = _listed(folders), Path(config.out)
    store = _Store(out.with_name(f"{out.name}.photos"))
    index = _stored_index(out)
    stored = index.meta.encoder if index is not None else None
    name = config.clip_model_type or stored or USUAL_ENCODER
    known = _known_rows(index, out) if index is not None and index.meta.encoder == name else {}
    weights = index.meta.encoder_weights_id if known and index is not None else None
    missing = [photo for photo in photos if known.get(photo.name, (None,))[0] != photo.stamp]
    _report(photos, known, missing)
    if missing:
        encoder = load_encoder(name, config.device, tokenizer=None)
        if weights not in (None, encoder.weights_id):
            known, missing = {}, photos
            logger.warning(f"{name} has other weights than when the index was made: all photos are encoded again")
        name, weights = encoder.name, encoder.weights_id
        with states_what_is_left(
            lambda: f"encoded so far: {counted(store.count, 'photo')}; the same command continues"
        ):
            known = known | _encoded(missing, encoder, store)
    usable = [photo for photo in photos if known.get(photo.name, (None,))[0] == photo.stamp]
    if not usable:
        raise ClipcapError(f"{', '.join(map(str, folders))}: none of the photos can be read")
    rows = torch.from_numpy(np.stack([known[photo.name][1] for photo in usable]))  # [N, D]
    meta = FeatureMeta(encoder=name, encoder_weights_id=weights)
    names, paths = [photo.name for photo in usable], [str(photo.path.absolute()) for photo in usable]
    return Features(rows, [], np.zeros(0, np.int64), names, paths, meta, Path(folders[0]))


def write_state(draft: Path, features: Features) -> None:
    """Note in an index which files its photos are."""
    photos = {}
    for name, path in zip(features.image_ids, features.image_paths, strict=True):
        status = os.stat(str(path))
        photos[name] = [status.st_size, status.st_mtime_ns]
    (draft / STATE).write_text(to_json(photos), encoding="utf-8", errors="backslashreplace")


def forget_encoded(out: Path) -> None:
    """Remove what lay beside the index while it was made."""
    shutil.rmtree(out.with_name(f"{out.name}.photos"), ignore_errors=True)


def _listed(folders: Sequence[str | Path]) -> list[Photo]:
    photos: dict[str, Photo] = {}
    for folder in map(Path, folders):
        for path in find_images([str(folder)]):
            status = os.stat(path)
            name = path.relative_to(folder).as_posix()
            if len(folders) > 1:
                name = f"{folder.absolute().name}/{name}"
            if name in photos:
                raise ClipcapError(f"{path} and {photos[name].path} would both be {name}: index their common folder")
            photos[name] = Photo(name, path, (status.st_size, status.st_mtime_ns))
    return list(photos.values())


def _stored_index(out: Path) -> Index | None:
    place = current_path(out)
    return Index.open(out) if (place / CONFIG).exists() and (place / STATE).exists() else None


def _known_rows(index: Index | None, out: Path) -> dict[str, tuple[Stamp, np.ndarray]]:
    """By name: size and time of the photos of an index, and their rows."""
    if index is None:
        return {}
    try:
        stamps: Mapping[str, list[int]] = json.loads((current_path(out) / STATE).read_text(encoding="utf-8"))
        rows = gather_rows(index.parts, np.arange(len(index)))[0].float().numpy()  # [N, D]
        names = [index.catalogue.entry(row).image_id for row in range(len(index))]
        return {name: ((stamps[name][0], stamps[name][1]), row) for name, row in zip(names, rows) if name in stamps}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        logger.warning(f"{out / STATE}: damaged: all photos are encoded again")
        return {}


def _report(photos: list[Photo], known: Mapping[str, object], missing: list[Photo]) -> None:
    if not known:
        logger.info(counted(len(photos), "photo"))
        return
    new = sum(photo.name not in known for photo in missing)
    gone = len(known.keys() - {photo.name for photo in photos})
    logger.info(
        f"{counted(len(photos), 'photo')}: {new:,} new, {len(missing) - new:,} changed, "
        f"{len(photos) - len(missing):,} as they were, {gone:,} deleted"
    )


class _Store:
    """Encoded photos beside an index in the making, in files of some hundred each."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0

    def read(self, weights: str | None) -> dict[str, tuple[Stamp, np.ndarray]]:
        """What an interrupted run of these weights has encoded, by name."""
        found: dict[str, tuple[Stamp, np.ndarray]] = {}
        for file in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(file, allow_pickle=False) as content:
                    head = json.loads(str(content["head"]))
                    if head["weights"] == weights:
                        found |= {n: ((a, b), row) for (n, a, b), row in zip(head["photos"], content["rows"])}
            except (OSError, ValueError, LookupError, TypeError):
                file.unlink(missing_ok=True)
        self.count = len(found)
        return found

    def add(self, photos: Sequence[Photo], rows: Tensor, weights: str | None) -> None:
        """Store photos and their rows [B, D]."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = {"weights": weights, "photos": [[photo.name, *photo.stamp] for photo in photos]}
        number = len(list(self.folder.glob("*.npz")))
        with replaced_file(self.folder / f"{number:06d}.npz", one_of_many=True) as draft, open(draft, "wb") as file:
            np.savez(file, head=np.array(json.dumps(head)), rows=rows.numpy())
        self.count += len(photos)


def _encoded(photos: list[Photo], encoder: Encoder, store: _Store) -> dict[str, tuple[Stamp, np.ndarray]]:
    """By name: size and time of photos, and their rows; one that cannot be read is named and left out."""
    found = store.read(encoder.weights_id)
    rest = [photo for photo in photos if found.get(photo.name, (None,))[0] != photo.stamp]
    if len(rest) < len(photos):
        logger.info(f"going on where an earlier run stopped: {counted(len(photos) - len(rest), 'photo')} encoded")
    with tqdm(total=len(rest), unit="photo", desc="encoding", disable=no_bar()) as bar:
        for start in range(0, len(rest), TOGETHER):
            for some, rows in _batches(rest[start : start + TOGETHER], encoder):
                bar.update(BATCH)
                store.add(some, rows, encoder.weights_id)
                found |= {photo.name: (photo.stamp, row) for photo, row in zip(some, rows.numpy())}
    return found


def _batches(photos: list[Photo], encoder: Encoder) -> Iterator[tuple[list[Photo], Tensor]]:
    threads = at_once()
    for batch in encode_images(encoder, [photo.path for photo in photos], BATCH, threads=threads):
        for fault in batch.bad.values():
            logger.warning(f"skipped {printable(str(fault))}")
        if batch.embeddings is not None:
            yield [photos[number] for number in batch.numbers], batch.embeddings.float().cpu()
