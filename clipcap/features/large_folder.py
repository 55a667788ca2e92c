"""A feature folder opened in the same memory whatever its size: its texts stay in the Parquet files.

What has to be known of them at once is made in one pass over the metadata and kept in `cache/captions.arrays`:

    caption_rows  int64 [M], the row of each caption
    images        int64 [N], a number for each row's image
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features, hashed
from clipcap.features.folder import (
    CAPTIONS,
    IDS,
    PATHS,
    ArrowStrings,
    ShardedRows,
    captions_in,
    open_shards,
    open_tokens,
    read_folder,
    read_meta,
    read_metadata,
)
from clipcap.features.stored_texts import MadeTexts, StoredTexts
from clipcap.runtime.disk_arrays import blocks, cached_arrays, in_order, scratch, write_arrays
from clipcap.runtime.safe_load.parquet import read_footer

CACHE, INDEX = "cache", "captions.arrays"
_READ_TOGETHER = 1 << 22  # bytes


class StoredCaptions(StoredTexts):
    """The captions of a folder, and what else was made of them can be kept beside them.

    Args:
        cache: the folder for it.
        fingerprint: tells from the captions.
    """

    def __init__(self, files: Sequence[Path], starts: Sequence[int] | np.ndarray, cache: Path, fingerprint: str):
        super().__init__(files, starts, _captions)
        self.cache, self.fingerprint = cache, fingerprint

    @property
    def cached(self) -> bool:
        """Whether the folder could be written."""
        return (self.cache / INDEX).is_file()


def read_large_folder(path: Path) -> Features:
    """As `read_folder`; the first time goes over all the metadata."""
    embeddings, files = open_shards(path)
    if not files:
        return read_folder(path)
    fingerprint = _fingerprint(files, embeddings)
    index = cached_arrays(path / CACHE / INDEX, fingerprint, partial(_write, files, embeddings))
    captions = StoredCaptions(files, index.facts["caption_starts"], path / CACHE, fingerprint)
    names, places = (
        StoredTexts(files, embeddings.starts, partial(_column, index.facts[kind]))
        if index.facts[kind]
        else MadeTexts(embeddings.shape[0], without)
        for kind, without in (("ids", "row {}".format), ("paths", lambda row: None))
    )
    rows, images = index.arrays["caption_rows"], index.arrays["images"]
    meta = read_meta(path, embeddings)
    tokens = open_tokens(path, embeddings, meta)
    return Features(embeddings, captions, rows, names, places, meta, path, images, tokens)


def _fingerprint(files: Sequence[Path], embeddings: ShardedRows) -> str:
    """Of every byte of the metadata: dates and sizes can stay the same where captions change."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.array([len(shard) for shard in embeddings.shards]).tobytes())
    for path in files:
        digest.update(path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while part := file.read(_READ_TOGETHER):
                digest.update(part)
    return digest.hexdigest()


def _write(files: Sequence[Path], embeddings: ShardedRows, draft: BinaryIO, fingerprint: str) -> None:
    """The arrays of the folder and the facts that go with them."""
    caption_starts = [0]

    def caption_rows() -> Iterator[np.ndarray]:
        for path, start, shard in zip(files, embeddings.starts.tolist(), embeddings.shards):
            metadata = read_metadata(path, CAPTIONS)
            if len(metadata) != len(shard):
                raise ClipcapError(
                    f"{path}: has {len(metadata):,} lines for {len(shard):,} embeddings: copy or make the shard again"
                )
            _, rows = captions_in(metadata)
            caption_starts.append(caption_starts[-1] + len(rows))
            yield rows + start

    ids, hashes = _ids(files, embeddings.shape[0])
    facts = {"fingerprint": fingerprint, "caption_starts": caption_starts, "ids": ids, "paths": _paths(files)}
    arrays = [("caption_rows", np.int64, caption_rows()), ("images", np.int64, [in_order(hashes)])]
    write_arrays(draft, arrays, facts)
    pa.default_memory_pool().release_unused()


def _ids(files: Sequence[Path], count: int) -> tuple[str | None, np.ndarray]:
    """The column that names the images, the best without gaps, and its texts as numbers [N]; if none, the rows'."""
    hashes = scratch(count, np.int64)
    for name in IDS:
        start = 0
        for path in files:
            texts = _column(name, path)
            if texts.null_count:
                break
            hashes[start : start + len(texts)] = hashed(ArrowStrings(texts))
            start += len(texts)
        else:
            return name, hashes
    for block in blocks(count):
        hashes[block] = np.arange(block.start, block.stop)
    return None, hashes


def _paths(files: Sequence[Path]) -> str | None:
    """The column that says where images lie, the best that any file has."""
    there = {name for path in files for name in read_footer(path).schema.to_arrow_schema().names}
    return next((name for name in PATHS if name in there), None)


def _column(name: str, path: Path) -> pa.Array:
    """A column of a file; gaps, where it has none of this name."""
    metadata = read_metadata(path, (name,))
    if name not in metadata.column_names:
        return pa.nulls(read_footer(path).num_rows, pa.large_string())
    return metadata[name].combine_chunks()


def _captions(path: Path) -> pa.Array:
    return captions_in(read_metadata(path, CAPTIONS))[0].texts
