"""Where an image lies: a file, a member of a tar, a row of a Parquet file, or bytes at hand."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

MAX_ROW_GROUP_BYTES = 4 * 2**30  # of one column of images; pictures do not pack, so more is a mistake or an attack
_MAX_GAIN = 64  # times the size on disk, beyond which a row group is taken for a decompression bomb


@dataclass(frozen=True, slots=True)  # there may be millions
class ImageRef:
    """Where an image lies: a file, a member of an uncompressed tar, a row of a Parquet file, or its bytes.

    Opening a file or a member costs one seek, so that workers can read images in any order; a row of a Parquet file
    costs its row group, which the process keeps for the rows beside it.
    """

    path: Path
    member: str | None = None
    offset: int = 0  # in bytes; with `column`, the number of the row
    size: int = -1
    column: str | None = None
    data: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    def open(self) -> BinaryIO:
        """The image's bytes as a binary stream.

        Raises:
            OSError: the file is missing or cannot be read.
            ValueError: the row of the Parquet file holds no bytes.
        """
        if self.data is not None:
            return io.BytesIO(self.data)
        if self.column is not None:
            return io.BytesIO(_bytes_in_row(str(self.path), self.column, self.offset))
        if self.member is None:
            return open(self.path, "rb")
        with open(self.path, "rb") as tar:
            tar.seek(self.offset)
            return io.BytesIO(tar.read(self.size))


def _bytes_in_row(path: str, column: str, row: int) -> bytes:
    starts = _row_groups(path, column)
    group = next(i for i in reversed(range(len(starts))) if starts[i] <= row)
    cell = _row_group(path, column, group)[row - starts[group]].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ValueError(f"row {row + 1} holds no bytes of an image")
    return data


@lru_cache(maxsize=64)
def _row_groups(path: str, column: str) -> list[int]:
    """The number of the first row of each row group."""
    import pyarrow.parquet

    starts, total = [], 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for number in range(file.metadata.num_row_groups):
            starts.append(total)
            total += file.metadata.row_group(number).num_rows
    return starts


@lru_cache(maxsize=2)
def _row_group(path: str, column: str, number: int) -> Any:
    """A column of a row group, decoded; the one before is kept, as a batch may reach from one into the next."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(path)
    leaves = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    words = [leaf for leaf in leaves if leaf.partition(".")[0] == column]
    with pyarrow.parquet.ParquetFile(path, read_dictionary=words) as file:  # a repeated picture is stored once
        # Not of its column: damaged statistics of a column end the process when it is asked for.
        size, packed = metadata.row_group(number).total_byte_size, os.path.getsize(path)
        if size > min(MAX_ROW_GROUP_BYTES, _MAX_GAIN * packed + 2**20):
            raise ValueError(f"row group {number + 1} holds {size:,} bytes in {packed:,}: write smaller row groups")
        return file.read_row_group(number, columns=[column]).column(column)
