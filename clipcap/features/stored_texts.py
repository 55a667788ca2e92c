"""Texts that stay on disk: columns of a folder's metadata, read a shard at a time when they are looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipcap.runtime.disk_arrays import by_shard

TOGETHER = 10_000  # texts that become Python objects at a time


class Texts(Sequence, ABC):
    """Texts that become Python objects when they are looked at."""

    @abstractmethod
    def several(self, numbers: np.ndarray) -> list[str | None]:
        """The texts of these numbers, int64 [n]."""

    def __getitem__(self, index: int | slice) -> Any:  # a text, or a list of them for a slice
        if isinstance(index, slice):
            return self.several(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"no text {index} among {len(self)}")
        return self.several(np.array([index % len(self)]))[0]

    def __iter__(self) -> Iterator[str | None]:
        for start in range(0, len(self), TOGETHER):
            yield from self[start : start + TOGETHER]

    def take(self, index: np.ndarray) -> ChosenTexts:
        """The texts of these numbers, left where they are."""
        return ChosenTexts(self, index)


class StoredTexts(Texts):
    """Texts of several files as one sequence; memory holds those of the file looked at last.

    Args:
        files: of the shards.
        starts: [shards + 1], the number of each shard's first text.
        read: the texts of a file.
    """

    def __init__(self, files: Sequence[Path], starts: Sequence[int] | np.ndarray, read: Callable[[Path], pa.Array]):
        self.files, self.starts, self._read = files, np.asarray(starts), read
        self._last: tuple[int, pa.Array | None] = (-1, None)  # in one piece: threads look too

    def __len__(self) -> int:
        return int(self.starts[-1])

    def several(self, numbers: np.ndarray) -> list[str | None]:
        """The texts of these numbers."""
        found = np.empty(len(numbers), object)
        for shard, places, shard_rows in by_shard(self.starts, numbers):
            found[places] = np.array(self._shard(shard).take(pa.array(shard_rows)).to_pylist(), object)
        return found.tolist()

    def _shard(self, number: int) -> pa.Array:
        last, texts = self._last
        if last != number:
            self._last = (-1, None)  # two files at once would double the memory
            texts = self._read(self.files[number])
            self._last = (number, texts)
        return texts


class MadeTexts(Texts):
    """Texts that follow from their numbers."""

    def __init__(self, count: int, make: Callable[[int], str | None]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def several(self, numbers: np.ndarray) -> list[str | None]:
        """The texts of these numbers."""
        return [self._make(number) for number in numbers.tolist()]


class ChosenTexts(Texts):
    """Some of other texts, without a copy of them.

    Args:
        base: the texts.
        numbers: of the chosen ones, int64 [n].
    """

    def __init__(self, base: Texts, numbers: np.ndarray):
        self.base, self.numbers = base, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def several(self, numbers: np.ndarray) -> list[str | None]:
        """The texts of these numbers."""
        return self.base.several(self.numbers[numbers])

    def take(self, index: np.ndarray) -> ChosenTexts:
        """The texts of these numbers, left where they are."""
        return ChosenTexts(self.base, self.numbers[index])
