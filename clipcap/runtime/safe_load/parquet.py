"""Parquet tables, held against the size of their file: a text that repeats takes bytes there and gigabytes here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from clipcap.errors import ClipcapError
from clipcap.runtime.text import one_line

# What pyarrow raises at damaged files; exceptions of its C++ libraries arrive as RuntimeError.
DAMAGED = (pa.ArrowException, OSError, ValueError, RuntimeError)
pc: Any = compute  # pyarrow makes its functions when it is imported: a type checker sees none of them
TIMES = 200  # that a table may grow when it is read: captions that repeat compress well
ALWAYS = 256 * 2**20  # bytes that any table may take
ROWS = 4096  # read together


class OversizedTable(ValueError):
    """A table that takes far more memory than its file."""


def read_batches(path: Path, columns: Sequence[str], rows: int = 2**16) -> Iterator[pa.RecordBatch]:
    """The columns of a table, at most so many rows at a time.

    Raises:
        OversizedTable: it takes more than `TIMES` times its size; raised before it does.
        ValueError, OSError, ArrowException, RuntimeError: it is damaged (`DAMAGED`).
    """
    most = max(ALWAYS, TIMES * path.stat().st_size)
    metadata = pq.read_metadata(path)
    stored = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if not 0 <= stored <= most:
        raise OversizedTable(f"claims {stored:,} bytes in a file of {path.stat().st_size:,}")
    leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    if stored + _most_repeated(path, metadata, columns, texts) <= most:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(rows, columns=list(columns))
        return
    size = 0
    with pq.ParquetFile(path, read_dictionary=texts) as file:  # slow: each batch brings all the words of its group
        for batch in file.iter_batches(batch_size=min(rows, ROWS), columns=list(columns)):
            size += sum(map(_decoded_bytes, batch.columns))
            if size > most:
                raise OversizedTable(f"takes more than {most:,} bytes when it is read, for {path.stat().st_size:,}")
            yield batch


def read_footer(path: Path) -> pq.FileMetaData:
    """How many rows a table has, and which columns.

    Raises:
        ClipcapError: it cannot be read.
    """
    try:
        return pq.read_metadata(path)
    except DAMAGED as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ClipcapError:
    """What a user is to know of a table that pyarrow cannot read."""
    return ClipcapError(f"{path}: cannot be read ({one_line(error)[:200]}): copy or make it again")


def _most_repeated(path: Path, metadata: pq.FileMetaData, columns: Sequence[str], texts: Sequence[str]) -> int:
    """Bytes of the texts that are stored once and used often, at most: as if all were the longest of them."""
    total = 0
    with pq.ParquetFile(path, read_dictionary=list(texts)) as file:
        for group in range(metadata.num_row_groups):
            first = next(file.iter_batches(batch_size=1, row_groups=[group], columns=list(columns)), None)
            for name, array in zip(first.schema.names, first.columns) if first else ():
                # Damaged statistics of a chunk end the process when it is asked for; reading has proven these sound.
                leaves = (n for n in range(metadata.num_columns) if _belongs(metadata.schema.column(n).path, name))
                values = sum(metadata.row_group(group).column(n).num_values for n in leaves)
                total += values * _longest_word(array)
    return total


def _belongs(path: str, column: str) -> bool:
    """Whether a leaf of the schema is (of) this column."""
    return f"{path}.".startswith(f"{column}.")


def _longest_word(array: pa.Array) -> int:
    """Bytes of the longest text of a dictionary, at any depth."""
    if isinstance(array, pa.DictionaryArray):
        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0 if len(array.dictionary) else 0
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _longest_word(array.values)
    if pa.types.is_struct(array.type):
        return max((_longest_word(array.field(number)) for number in range(array.type.num_fields)), default=0)
    return 0


def _decoded_bytes(array: pa.Array) -> int:
    """Bytes of an array once its texts are written out."""
    if isinstance(array, pa.DictionaryArray):
        words = array.dictionary
        if not (pa.types.is_string(words.type) or pa.types.is_binary(words.type) or _is_large(words.type)):
            return array.nbytes
        lengths = pc.binary_length(words)
        used = pc.take(lengths, array.indices)
        return int(pc.sum(used).as_py() or 0) + 8 * len(array)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return 8 * len(array) + _decoded_bytes(array.flatten())
    if pa.types.is_struct(array.type):
        return sum(map(_decoded_bytes, array.flatten()))
    return array.nbytes


def _is_large(kind: pa.DataType) -> bool:
    return pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
