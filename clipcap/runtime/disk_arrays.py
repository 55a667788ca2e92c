"""Arrays on disk in place of memory: scratch space that ends with the process, and files of named arrays.

Pages of a mapped file are the system's to drop and to read again: they do not count as memory that a process holds
(`RssAnon`), and several processes share them.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.runtime.messages import logger

try:
    import fcntl
except ImportError:  # Windows: two runs may do the same work there, one after the other takes the name
    fcntl = None

IN_MEMORY = 1 << 20  # bytes: smaller scratch is not worth a file
BLOCK = 1 << 18  # entries gone through at a time
_MAGIC, _ALIGNED = b"clipcap\x01", 64


def blocks(count: int, size: int | None = None) -> Iterator[slice]:
    """Slices of `size`, or `BLOCK`, that cover 0 … count − 1."""
    size = size or BLOCK
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def by_shard(starts: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Entries of arrays that lie in shards, one shard after another.

    Args:
        starts: [shards + 1], the number of each shard's first entry; a number beyond them is of one shard more.
        numbers: [n], of the entries, in any order.
    Returns:
        for each shard that holds any: which one, the places of its numbers in `numbers`, and what they are in it.
    """
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    shard_of = np.searchsorted(starts, ordered, side="right") - 1
    ends = np.flatnonzero(np.diff(shard_of, append=-2)) + 1  # of each shard's entries; -2 is no shard
    for start, end in pairwise([0, *ends.tolist()]):
        shard = int(shard_of[start])
        yield shard, order[start:end], ordered[start:end] - starts[shard]


def scratch(count: int, dtype: Any) -> np.ndarray:
    """Zeros [count], in a nameless temporary file where they are many.

    Raises:
        ClipcapError: the place of temporary files is full.
    """
    size = count * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.zeros(count, dtype)
    with _room(), tempfile.TemporaryFile(prefix="clipcap-") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and a dead process later
        return np.asarray(np.memmap(file, dtype, "r+", shape=(count,)))


def in_order(values: np.ndarray) -> np.ndarray:
    """Values, int64 [N], as 0, 1, 2, … in the order of their first appearance, int64 [N]; sorts on disk."""
    count = len(values)
    ordered, first, numbers = (scratch(count, np.int64) for _ in range(3))
    for block in blocks(count):
        ordered[block] = values[block]
    ordered.sort()
    for block in reversed([*blocks(count)]):  # of equal values the earliest is written last
        place = np.searchsorted(ordered, values[block])
        first[place[::-1]] = np.arange(block.start, block.stop)[::-1]
    number = scratch(count, np.int64)  # of the value that comes first at a place of `ordered`
    seen = 0
    for block in blocks(count):
        place = np.searchsorted(ordered, values[block])
        new = first[place] == np.arange(block.start, block.stop)
        number[place[new]] = seen + np.arange(new.sum())
        numbers[block] = number[place]
        seen += int(new.sum())
    return numbers


def where(mask: np.ndarray, value: bool = True) -> np.ndarray:
    """Where `mask`, bool [N], has this value: numbers from 0 to N − 1, int64, in a temporary file."""
    found = GrowingArray(np.int64)
    for block in blocks(len(mask)):
        found.append(block.start + np.flatnonzero(mask[block] == value))
    return found.close()


class GrowingArray:
    """An array of a length not yet known, in a nameless temporary file."""

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)
        with _room():
            self._file = tempfile.TemporaryFile(prefix="clipcap-")  # noqa: SIM115

    def append(self, values: np.ndarray) -> None:
        """Add values at the end.

        Raises:
            ClipcapError: the place of temporary files is full.
        """
        with _room():
            self._file.write(np.ascontiguousarray(values, self.dtype).data)

    def close(self) -> np.ndarray:
        """All of them, mapped; they go with the last reference to them."""
        with _room(), self._file as file:
            file.flush()
            count = file.tell() // self.dtype.itemsize
            return np.asarray(np.memmap(file, self.dtype, "r+", shape=(count,))) if count else np.empty(0, self.dtype)


@contextmanager
def _room() -> Iterator[None]:
    """Within the context, errors of the temporary folder become one line."""
    try:
        yield
    except OSError as error:
        raise ClipcapError(
            f"{tempfile.gettempdir()}: no room for temporary files ({error.strerror or error}): "
            "free some space or set TMPDIR to another place"
        ) from error


@dataclass(frozen=True)
class ArrayFile:
    """A file of named arrays, mapped, and the facts that were written with them."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def write_npy(file: BinaryIO, values: np.ndarray) -> None:
    """As `np.save`, which does not say why it fails: on a full disk its OSError has no errno."""
    values = np.ascontiguousarray(values)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
    file.write(values.data)


# Not `.npy`: a cache is one file of several arrays, whose lengths are known only when they are written; it appears
# whole or not at all. The index of retrieval/parts.py is a folder that others read too: there it is `.npy`.
def write_arrays(file: BinaryIO, arrays: Iterable[tuple[str, Any, Iterable[np.ndarray]]], facts: Mapping) -> None:
    """Write arrays one after the other, their blocks as they come: (name, dtype, blocks). Their index comes last.

    A truncated file lacks the index, and is refused.
    """
    places = {}
    for name, dtype, parts in arrays:
        start, count = file.tell(), 0
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)
            count += len(part)
        file.write(bytes(-file.tell() % _ALIGNED))
        places[name] = (np.dtype(dtype).str, start, count)
    end = json.dumps({"arrays": places, "facts": dict(facts)}).encode()
    file.write(end + len(end).to_bytes(8, "little") + _MAGIC)


def map_arrays(file: BinaryIO) -> ArrayFile:
    """A file of `write_arrays`.

    Raises:
        ValueError: another kind of file, or a truncated one.
    """
    size = file.seek(0, os.SEEK_END)
    if size < 16:
        raise ValueError("too short")
    file.seek(-16, os.SEEK_END)
    length, magic = int.from_bytes(file.read(8), "little"), file.read(8)
    if magic != _MAGIC or length > size - 16:
        raise ValueError("cut short")
    file.seek(size - 16 - length)
    end = json.loads(file.read(length))
    arrays = {}
    for name, (dtype, start, count) in end["arrays"].items():
        if start + count * np.dtype(dtype).itemsize > size:
            raise ValueError("cut short")
        mapped = np.memmap(file, dtype, "r", start, (count,)) if count else np.empty(0, dtype)
        arrays[name] = np.asarray(mapped)
    return ArrayFile(arrays, end["facts"])


def cached_arrays(
    path: Path, fingerprint: str, write: Callable[[BinaryIO, str], None], quiet: bool = False
) -> ArrayFile:
    """The arrays cached at `path` under this fingerprint; otherwise write them there.

    One process makes them while others wait, also those of other runs. They appear whole or not at all.

    Args:
        path: of the file; its folder is made.
        fingerprint: identifies everything that the arrays are computed from.
        write: writes them, with the fingerprint among the facts.
        quiet: no note if the cache cannot be written and a temporary file replaces it.
    """
    if found := _found(path, fingerprint):
        return found
    try:
        path.parent.mkdir(exist_ok=True)
        with _one_at_a_time(path):
            return _found(path, fingerprint) or _create(path, fingerprint, write)
    except OSError as error:
        reason = error.strerror or error
        if not quiet:
            logger.info(f"note: {path.parent} cannot be written ({reason}): results for its captions are not cached")
    with _room(), tempfile.TemporaryFile(prefix="clipcap-") as file:
        write(file, fingerprint)
        file.flush()
        return map_arrays(file)


def _found(path: Path, fingerprint: str) -> ArrayFile | None:
    try:
        with path.open("rb") as file:
            found = map_arrays(file)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or of no use
        return None
    return found if found.facts.get("fingerprint") == fingerprint else None


def _create(path: Path, fingerprint: str, write: Callable[[BinaryIO, str], None]) -> ArrayFile:
    """Written under a name of its own, since locks may be missing, then renamed."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
    try:
        with draft.open("x+b") as file:
            write(file, fingerprint)
            file.flush()
            os.fsync(file.fileno())
            os.replace(draft, path)
            return map_arrays(file)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Wait for whoever makes `path`; the system ends the wait when that process ends, however it ends."""
    with path.with_name(f".{path.name}.lock").open("ab") as lock:
        if _locked(lock):
            for left in path.parent.glob(f".{path.name}.*.draft"):  # by a process that was killed
                left.unlink(missing_ok=True)
        yield


def _locked(lock: BinaryIO) -> bool:
    """Whether there is a lock: some network drives have none, and the work may be done twice there."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
