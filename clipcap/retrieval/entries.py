"""The entry of each row of an index: image id, captions and path; in memory, or in mapped Arrow files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from pyarrow import compute

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.runtime.disk_arrays import blocks
from clipcap.runtime.safe_load.parquet import DAMAGED

pc: Any = compute  # pyarrow makes its functions when it is imported: a type checker sees none of them
SCHEMA = pa.schema(
    {
        "image_id": pa.large_string(),
        "image_path": pa.large_string(),
        "captions": pa.large_list(pa.large_string()),
    }
)


class Entry(NamedTuple):
    """A row of an index."""

    image_id: str
    path: str | None
    captions: list[str]


class Catalogue(Protocol):
    """The entries of an index, by row and by name."""

    def entry(self, row: int) -> Entry:
        """The entry of a row."""
        ...

    def row_of(self, image_id: str) -> int | None:
        """The first row of an image."""

    def caption(self, number: int) -> str | None:
        """A caption by its number, from 0."""


class FeatureCatalogue:
    """The entries of features."""

    def __init__(self, features: Features):
        self.features = features

    def entry(self, row: int) -> Entry:
        """The entry of a row."""
        features = self.features
        return Entry(str(features.image_ids[row]), features.image_paths[row], features.captions_of(row))

    def row_of(self, image_id: str) -> int | None:
        """The first row of an image."""
        return next((row for row, name in enumerate(self.features.image_ids) if name == image_id), None)

    def caption(self, number: int) -> str | None:
        """A caption by its number, from 0."""
        captions = self.features.captions
        return captions[number] if 0 <= number < len(captions) else None


class StoredCatalogue:
    """The entries of the parts of an index: read from disk when they are asked for."""

    def __init__(self, tables: Sequence[pa.Table], captions: Sequence[int], images: Sequence[np.ndarray]):
        self.tables = tables
        self.images = images  # of the rows of each part, see `image_number`
        self.starts = np.cumsum([0, *map(len, tables)])
        self.caption_starts = np.cumsum([0, *captions])

    def entry(self, row: int) -> Entry:
        """The entry of a row."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        try:
            return Entry(*(column[row - int(self.starts[part])].as_py() for column in self.tables[part].columns))
        except ValueError as error:  # bytes other than UTF-8
            raise ClipcapError(f"row {row} of the index: its texts are damaged: build the index again") from error

    def row_of(self, image_id: str) -> int | None:
        """The first row of an image."""
        number = image_number(image_id)
        for start, images in zip(self.starts.tolist(), self.images):
            found = np.flatnonzero(images == number)
            if len(found):
                return start + int(found[0])
        return None

    def caption(self, number: int) -> str | None:
        """A caption by its number, from 0."""
        if not 0 <= number < self.caption_starts[-1]:
            return None
        part = int(np.searchsorted(self.caption_starts, number, side="right")) - 1
        captions = self.tables[part]["captions"]
        ends = np.cumsum(pc.list_value_length(captions).to_numpy())
        below = number - int(self.caption_starts[part])
        row = int(np.searchsorted(ends, below, side="right"))
        return captions[row].as_py()[below - int(ends[row])]


def image_number(image_id: str) -> int:
    """A number for an image id, the same everywhere: 8 bytes of BLAKE2b, as int64."""
    digest = hashlib.blake2b(_utf8(image_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def image_numbers(image_ids: Iterable[str]) -> np.ndarray:
    """`image_number` of each, int64 [N]."""
    return np.fromiter(map(image_number, image_ids), np.int64)


def entries_table(
    image_ids: Sequence[str], image_paths: Sequence[str | None], captions: Sequence[Sequence[str]]
) -> pa.Table:
    """Entries as they are stored, N lines."""
    columns = [
        [_utf8(image_id) for image_id in image_ids],
        [path and _utf8(path) for path in image_paths],
        [[_utf8(text) for text in row_captions] for row_captions in captions],
    ]
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA)], SCHEMA)


def map_entries(path: Path) -> pa.Table:
    """A file of entries, read as it is looked at.

    Raises:
        ClipcapError: truncated, or not a file of entries.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if table.schema == SCHEMA:
            _check_offsets(table)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise ClipcapError(f"{path}: truncated or damaged ({reason}): copy or build the index again") from error
    if table.schema != SCHEMA:
        raise ClipcapError(f"{path}: is not a part of an index: copy or build the index again")
    return table


def _check_offsets(table: pa.Table) -> None:
    """Look where each text and each list begins and ends: Arrow believes the file, and would read beyond it.

    The offsets alone are read, 8 bytes for each text, not the texts.

    Raises:
        ValueError: one lies outside of its buffer, or ends before it begins.
    """
    table.validate()
    for column in table.columns:
        for chunk in column.chunks:
            _check_array(chunk)


def _check_array(array: pa.Array) -> None:
    bitmap, offsets, *rest = array.buffers()
    if not len(array):
        return
    if offsets is None or offsets.size < 8 * (array.offset + len(array) + 1):
        raise ValueError("offsets are missing")
    if bitmap is not None and bitmap.size * 8 < array.offset + len(array):
        raise ValueError("the marks of absent texts are cut short")
    bounds = np.frombuffer(offsets, "<i8")[array.offset : array.offset + len(array) + 1]
    nested = pa.types.is_large_list(array.type)
    end = len(array.values) if nested else rest[0].size if rest[0] is not None else 0
    for block in blocks(len(array)):
        part = bounds[block.start : block.stop + 1]
        if part[0] < 0 or part[-1] > end or (part[1:] < part[:-1]).any():
            raise ValueError("a text lies outside of the file")
    if nested:
        _check_array(array.values)


def _utf8(text: str) -> str:
    """Replace what is not UTF-8 in a file name: Arrow refuses it."""
    return text.encode("utf-8", "replace").decode("utf-8")
