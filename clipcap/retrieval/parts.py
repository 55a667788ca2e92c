"""A part of an index on disk: written row by row as they come, read by mapping its files.

rows.npy        [rows, D] float16 or float32, as in the features
images.npy      int64 [rows], a number for the image of each
scales.npy      float32 [rows], 1 / L2 norm
entries.arrow   image id, path and captions of each
near.index      faiss, where the index is approximate
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.features.folder import ShardedRows
from clipcap.retrieval.entries import SCHEMA, entries_table, image_numbers, map_entries
from clipcap.retrieval.exact import Vectors, scales_of
from clipcap.runtime.disk_arrays import write_npy

AGAIN = "copy the index whole, or build it again"


class PartWriter:
    """Writes the rows of a part, and their entries."""

    def __init__(self, folder: Path, like: Tensor):
        folder.mkdir()
        self.folder, self.dim, self.dtype = folder, like.shape[1], like.numpy().dtype
        self.count = self.captions = 0
        self._images: list[np.ndarray] = []
        self._scales: list[np.ndarray] = []
        with ExitStack() as opened:
            self._rows = opened.enter_context(open(folder / "rows.npy", "wb"))
            entries = opened.enter_context(open(folder / "entries.arrow", "wb"))
            self._entries = opened.enter_context(pa.ipc.new_file(entries, SCHEMA))
            self._write_header()
            self._opened = opened.pop_all()

    def _write_header(self) -> None:
        """numpy leaves room in it for the count: its length stays the same."""
        header = np.lib.format.header_data_from_array_1_0(np.empty((0, self.dim), self.dtype))
        self._rows.seek(0)
        np.lib.format.write_array_header_1_0(self._rows, {**header, "shape": (self.count, self.dim)})

    def add(
        self, rows: Tensor, ids: Sequence[str], paths: Sequence[str | None], captions: Sequence[Sequence[str]]
    ) -> None:
        """Add rows [B, D] and their entries.

        Raises:
            OSError: the disk is full; the files are closed.
        """
        try:
            self._rows.write(rows.contiguous().numpy().data)
            self._entries.write_table(entries_table(ids, paths, captions))
        except OSError:
            with suppress(OSError, pa.ArrowException):  # else Python reports their last bytes later, on stderr
                self._opened.close()
            raise
        self._images.append(image_numbers(ids))
        self._scales.append(scales_of(rows.float()).numpy())
        self.count += len(rows)
        self.captions += sum(map(len, captions))

    def close(self) -> dict[str, int]:
        """Finish the part; what the index says of it."""
        self._write_header()
        self._opened.close()
        for name, columns in (("images", self._images), ("scales", self._scales)):
            with open(self.folder / f"{name}.npy", "wb") as file:
                write_npy(file, np.concatenate(columns))
        return {"rows": self.count, "captions": self.captions}


def open_part(folder: Path, count: int) -> tuple[Vectors, pa.Table]:
    """The vectors and the entries of a part of `count` rows.

    Raises:
        ClipcapError: files are missing, truncated, or of another length.
    """
    rows = ShardedRows([folder / "rows.npy"])
    images, scales = _column(folder / "images.npy", "int64"), _column(folder / "scales.npy", "float32")
    entries = map_entries(folder / "entries.arrow")
    if {rows.shape[0], len(images), len(scales), len(entries)} != {count}:
        raise ClipcapError(f"{folder}: its files are of different lengths: {AGAIN}")
    return Vectors(rows, images, scales), entries


def _column(path: Path, kind: str) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ClipcapError(f"{path}: missing, truncated or damaged: {AGAIN}") from error
    if values.ndim != 1 or values.dtype != kind:
        raise ClipcapError(f"{path}: is not a part of an index: {AGAIN}")
    return values
