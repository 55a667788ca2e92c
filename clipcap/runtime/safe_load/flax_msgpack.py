"""Parameters that flax stored (`flax_model.msgpack`) as tensors, without flax.

Msgpack runs no code, and every size is checked against the bytes left in the file.

A file is a map of maps; a leaf is an extension of type 1 (an array) or 3 (a NumPy scalar), whose payload is msgpack
of (shape, dtype name, bytes in C order). Arrays above 1 GB are cut into chunks, in a map with
`__msgpack_chunked_array__`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int32": torch.int32,
}
_DEEPEST, _ARRAY, _SCALAR = 64, 1, 3
_MOST_SIDES, _MOST_PLACES = 8, 2**48  # of an array: its dimensions, and their product, zeros left out
_CHUNKED = "__msgpack_chunked_array__"
# first byte → (struct format, size) of a number; → (size of the length) of a string, of bytes, of an extension
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_STRINGS, _BYTES = {0xD9: 1, 0xDA: 2, 0xDB: 4}, {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LISTS, _MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}
_EXTENSIONS, _FIXED = {0xC7: 1, 0xC8: 2, 0xC9: 4}, {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


class MsgpackError(ValueError):
    """A file does not hold flax parameters: where it fails, and why."""


@dataclass(frozen=True)
class StoredArray:
    """An array in the file: read when `tensor` is called.

    Attributes:
        shape: of the array.
        dtype: torch's.
        parts: its bytes, in one piece or several.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[memoryview, ...]

    def tensor(self) -> Tensor:
        """A copy of the array."""
        data = bytearray(b"".join(self.parts))
        flat = torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0, dtype=self.dtype)
        return flat.reshape(self.shape)


def read_parameters(path: Path) -> dict[str, StoredArray]:
    """The arrays of a file by their path, `text_model/pooler/dense/kernel`, mapped and not yet read.

    Raises:
        MsgpackError: it is cut short, holds anything but maps of arrays, or claims more than it holds.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not file.read(1):
            raise MsgpackError("is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    reader = _Reader(data)
    content = reader.value(0)
    if reader.place != len(data):
        raise MsgpackError(f"goes on after its end, at byte {reader.place:,}")
    if not isinstance(content, dict):
        raise MsgpackError("is no map of parameters")
    return dict(_leaves(content, ""))


class _Reader:
    """Reads one value after the other; every length is compared with the bytes left."""

    def __init__(self, data: memoryview):
        self.data, self.place = data, 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.place:
            raise MsgpackError(f"is cut short: {count:,} bytes are claimed at byte {self.place:,}")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, form: str) -> int | float:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def length(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise MsgpackError(f"is nested more than {_DEEPEST} deep")
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self.number(_NUMBERS[first])
        if first in _BYTES:
            return self.take(self.length(_BYTES[first]))
        if 0xA0 <= first < 0xC0 or first in _STRINGS:
            return self.text(self.length(_STRINGS[first]) if first in _STRINGS else first & 0x1F)
        if first < 0x90 or first in _MAPS:
            return self.map(self.length(_MAPS[first]) if first in _MAPS else first & 0x0F, depth)
        if first < 0xA0 or first in _LISTS:
            return self.list(self.length(_LISTS[first]) if first in _LISTS else first & 0x0F, depth)
        if first in _EXTENSIONS or first in _FIXED:
            return self.array(self.length(_EXTENSIONS[first]) if first in _EXTENSIONS else _FIXED[first], depth)
        raise MsgpackError(f"holds the unknown byte {first:#x} at {self.place - 1:,}")

    def text(self, size: int) -> str:
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise MsgpackError(f"holds a name that is not UTF-8 at byte {self.place:,}") from error

    def list(self, count: int, depth: int) -> list:
        if count > len(self.data) - self.place:
            raise MsgpackError(f"is cut short: a list of {count:,} is claimed at byte {self.place:,}")
        return [self.value(depth + 1) for _ in range(count)]

    def map(self, count: int, depth: int) -> dict[str, Any]:
        if 2 * count > len(self.data) - self.place:
            raise MsgpackError(f"is cut short: a map of {count:,} is claimed at byte {self.place:,}")
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.value(depth + 1)
            if not isinstance(name, str):
                raise MsgpackError(f"holds a name that is a {type(name).__name__}")
            if name in found:
                raise MsgpackError(f"holds {name[:60]!r} twice")
            found[name] = self.value(depth + 1)
        return found

    def array(self, size: int, depth: int) -> StoredArray:
        kind = int(self.number(">b"))
        if kind not in (_ARRAY, _SCALAR):
            raise MsgpackError(f"holds an extension of type {kind}, which is not an array")
        inner = _Reader(self.take(size))
        content = inner.value(depth + 1)
        if not isinstance(content, list) or len(content) != 3 or inner.place != size:
            raise MsgpackError("holds an array that is not (shape, dtype, bytes)")
        shape, dtype, data = content
        if not _is_shape(shape) or not isinstance(dtype, str) or not isinstance(data, memoryview):
            raise MsgpackError("holds an array that is not (shape, dtype, bytes)")
        if dtype not in DTYPES:
            raise MsgpackError(f"holds an array of {str(dtype)[:40]!r}; known are {', '.join(DTYPES)}")
        needed = math.prod(shape) * DTYPES[dtype].itemsize
        if needed != len(data):
            raise MsgpackError(f"holds an array of shape {shape} with {len(data):,} bytes in place of {needed:,}")
        return StoredArray(tuple(shape), DTYPES[dtype], (data,))


def _is_shape(value: Any) -> bool:
    """Whether a value is the shape of an array that torch can make, be it of no elements."""
    if not isinstance(value, list) or len(value) > _MOST_SIDES:
        return False
    return all(type(n) is int and n >= 0 for n in value) and math.prod(max(n, 1) for n in value) <= _MOST_PLACES


def _leaves(content: Mapping[str, Any], path: str) -> Iterator[tuple[str, StoredArray]]:
    for name, value in content.items():
        place = f"{path}/{name}" if path else name
        if isinstance(value, StoredArray):
            yield place, value
        elif isinstance(value, dict):
            if _CHUNKED in value:
                yield place, _joined(value, place)
            else:
                yield from _leaves(value, place)
        else:
            raise MsgpackError(f"holds a {type(value).__name__} at {place[:80]}, not an array")


def _joined(content: Mapping[str, Any], place: str) -> StoredArray:
    """An array of chunks, which flax stores flat, in the order of their numbers."""
    numbered = [part for name in ("shape", "chunks") if isinstance(part := content.get(name), dict)]
    if len(numbered) < 2:
        raise MsgpackError(f"holds an array of chunks without shape or chunks at {place[:80]}")
    shape, chunks = ([cast(Any, part.get(str(i))) for i in range(len(part))] for part in numbered)
    right = _is_shape(shape) and all(isinstance(c, StoredArray) for c in chunks)
    if not right or not chunks or len({chunk.dtype for chunk in chunks}) != 1:
        raise MsgpackError(f"holds an array of chunks that do not fit together at {place[:80]}")
    if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
        raise MsgpackError(f"holds chunks at {place[:80]} that do not add up to the shape {shape}")
    return StoredArray(tuple(shape), chunks[0].dtype, tuple(part for chunk in chunks for part in chunk.parts))
