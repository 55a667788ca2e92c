"""The feature file: embeddings of images and their captions, as one pickle or as a memory-mapped folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

import clipcap
from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import with_encoder
from clipcap.features.feature_set import Content, FeatureMeta, Features, Sliced
from clipcap.features.folder import STEMS, Tower, read_folder, read_shards
from clipcap.features.folder_writer import write_folder
from clipcap.features.large_folder import read_large_folder
from clipcap.features.pickle_file import read_pickle, write_pickle
from clipcap.runtime.files import current_path


def find_features(path: str | Path) -> Path:
    """Where the features called `path` lie.

    Raises:
        ClipcapError: no features there; names what lies beside it under a similar name.
    """
    path = Path(path)
    found = current_path(path)
    if not found.exists():
        name = path.name.removesuffix(".pkl")
        like = [path.with_name(name + end) for end in ("", ".pkl", "_train", "_train.pkl")]
        there = next((f"; did you mean {near}?" for near in like if near.exists()), "")
        raise ClipcapError(f"{path}: no such feature file: parse the images first, or fix the path{there}")
    return found


def read_to_train(path: str | Path, encoder: str | None = None) -> Features:
    """As `read_features`; of a folder memory holds next to nothing, and what is made of its texts is kept in it."""
    path = find_features(path)
    if not path.is_dir():
        return read_features(path, encoder)
    with _reading(path):
        features = read_large_folder(path)
    return with_encoder(features, encoder)


def read_features(path: str | Path, encoder: str | None = None, tower: Tower = "image") -> Features:
    """Open a feature pickle or folder: ours, the original's, the food fork's, or clip-retrieval's.

    Args:
        path: `.pkl` file or folder.
        encoder: the encoder of a file that does not say it; guessed from the width where it is not given.
        tower: `image`, or `text` for the embeddings of the captions in a folder of clip-retrieval.
    Raises:
        ClipcapError: missing, truncated, hostile, or no feature file; or `encoder` contradicts it.
    """
    path = find_features(path)
    if tower != "image" and not path.is_dir():
        raise ClipcapError(f"{path}: holds embeddings of images alone: leave out --tower")
    with _reading(path):
        features = read_folder(path, tower) if path.is_dir() else read_pickle(path)
    return with_encoder(features, encoder)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the system says of files that cannot be read, in one line."""
    try:
        yield
    except OSError as error:
        raise ClipcapError(f"{path}: cannot be read ({error.strerror or error}): check the file") from error


def read_parts(path: str | Path, encoder: str | None = None, tower: Tower = "image") -> Iterable[Features]:
    """As `read_features`, but a folder shard by shard, each read when its turn comes; a pickle is one part."""
    path = find_features(path)
    return _Shards(path, encoder, tower) if path.is_dir() else [read_features(path, encoder, tower)]


@dataclass(frozen=True)
class _Shards:
    """The shards of a feature folder, anew at each going through."""

    path: Path
    encoder: str | None
    tower: Tower

    def __iter__(self) -> Iterator[Features]:
        return (with_encoder(shard, self.encoder) for shard in read_shards(self.path, self.tower))


def check_place(path: Path) -> None:
    """Refuse to write features where something else lies.

    Raises:
        ClipcapError: `NAME.pkl` is a folder, or another name is a file or a folder of other files.
    """
    if path.suffix == ".pkl" and path.is_dir():
        raise ClipcapError(f"{path}: is a folder: choose another name for the file")
    if path.suffix != ".pkl" and path.is_file():
        raise ClipcapError(f"{path}: is a file: features go to NAME.pkl, or to a folder of a new name")
    if path.is_dir() and any(path.iterdir()) and not any((path / stem).is_dir() for stem in STEMS.values()):
        raise ClipcapError(f"{path}: is a folder of other files: choose a new name")


def refuse_tokens(path: Path) -> NoReturn:
    """Refuse to write tokens into a pickle.

    Raises:
        ClipcapError: always; says what to do.
    """
    raise ClipcapError(f"{path}: a pickle holds no tokens of images: name a folder, --out {path.with_suffix('')}")


def write_features(
    path: str | Path,
    *,
    embeddings: np.ndarray | torch.Tensor,
    image_ids: Sequence[str],
    image_paths: Sequence[str | None],
    captions: Sequence[Sequence[str]],
    meta: FeatureMeta,
    tokens: Sliced | None = None,
) -> None:
    """Write features, whole or not at all; the same content gives the same bytes.

    Args:
        path: `NAME.pkl` for a pickle that the original trainer reads, else a folder of memory-mapped shards.
        embeddings: [N, D], for a folder a memory map of any size; stored as float16 where they are, else float32.
        image_ids: N, one per row.
        image_paths: N, where the images lay.
        captions: N, the captions of each row.
        meta: what is known of them; dtype and versions are filled in.
        tokens: [N, T, W] float16, of which `meta.tokens` tells; for a folder alone.
    Raises:
        ClipcapError: it could not be written; what lay at `path` before is untouched.
    """
    if isinstance(embeddings, torch.Tensor):
        half = embeddings.dtype == torch.float16
        embeddings = embeddings.detach().cpu().to(torch.float16 if half else torch.float32).numpy()
    elif embeddings.dtype not in (np.float16, np.float32):
        embeddings = embeddings.astype(np.float32)
    if embeddings.ndim != 2 or not len(embeddings) == len(image_ids) == len(image_paths) == len(captions):
        raise ValueError("embeddings must be [N, D], with N image ids, paths and tuples of captions")
    content = Content(embeddings, image_ids, image_paths, captions, tokens)
    write_parts(path, [content], replace(meta, dtype=embeddings.dtype.name))


def write_parts(path: str | Path, parts: Iterable[Content], meta: FeatureMeta, tower: Tower = "image") -> None:
    """As `write_features`, from parts of one width and number type: for a folder only one need be in memory.

    A folder can also be of texts, `tower` text: a row is then a text, with itself as its caption.
    """
    path = Path(path)
    check_place(path)
    meta = replace(meta, clipcap_version=clipcap.__version__)
    if path.suffix != ".pkl":
        write_folder(path, parts, meta, tower)
        return
    if meta.tokens:
        refuse_tokens(path)
    embeddings, *columns = map(list, zip(*([column[:] for column in part[:4]] for part in parts)))
    rows = np.concatenate(embeddings) if len(embeddings) > 1 else embeddings[0]
    write_pickle(path, Content(rows, *(list(chain.from_iterable(column)) for column in columns)), meta)
