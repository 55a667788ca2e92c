"""The order in which captions are trained on: shuffled in windows of blocks of the file, then bucketed by length.

A window is `WINDOW` captions out of blocks that lie anywhere in the file, `BLOCK` neighbours each: reading is in
pieces of hundreds of kilobytes, and what is held in memory is a window. Sets of one window are shuffled freely.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clipcap.features.feature_set import Features
from clipcap.runtime.disk_arrays import blocks, scratch

WINDOW = 1 << 18  # captions shuffled with each other
BLOCK = 1 << 10  # captions read together
POOL_STEPS = 64  # optimiser steps whose captions are sorted by length together
ROWS_TOGETHER = 8192  # embeddings read at a time
MOST_TOGETHER = 8  # captions behind one prefix; attention's arithmetic grows with the square of their number
_CAPTION_BITS = 32  # of a sorted key (image, caption)


class BatchOrder:
    """Which captions make up the optimiser steps of an epoch.

    Args:
        starts: int64 [M + 1], where each caption's tokens begin.
        features: of the captions, where those of one image stand in one row of a batch; else None.
    """

    def __init__(self, starts: np.ndarray, features: Features | None):
        self.starts = starts
        self.grouped = self.leader = None  # None: captions are not grouped
        self.sizes = {1: len(self)}  # captions by how many share their row
        if features is not None:
            self.grouped, self.leader, self.sizes = shared_rows(features)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shares(self) -> bool:
        """Whether any captions share a row."""
        return set(self.sizes) != {1}

    def begins_row(self, captions: np.ndarray) -> np.ndarray:
        """Which captions begin a row, those of a row being side by side, bool [n]."""
        return np.diff(self.leaders(captions), prepend=-1) != 0

    def leaders(self, captions: np.ndarray) -> np.ndarray:
        """The first caption of each one's row, int64 [n]."""
        return captions if self.leader is None else self.leader[captions]

    def lengths(self, captions: np.ndarray) -> np.ndarray:
        """Tokens of each caption, int64 [n]."""
        return self.starts[captions + 1] - self.starts[captions]

    def freely(self, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The original's steps: all captions shuffled, the last, incomplete step dropped."""
        order = scratch(len(self), np.int64)
        for block in blocks(len(order)):
            order[block] = np.arange(block.start, block.stop)
        rng.shuffle(order)
        for start in range(0, self.count_freely(size) * size, size):
            yield np.array(order[start : start + size])

    def count_freely(self, size: int) -> int:
        """Steps of `freely`: at least one."""
        return max(1, len(self) // size)

    def bucketed(self, size: int, seeds: tuple[int, int] | None) -> Iterator[np.ndarray]:
        """All captions as steps of rows of similar length and at most `size` captions.

        The rows of a step hold the same number of captions and none is cut in two, except in the last steps, of what
        is left over.

        Args:
            size: captions of a step.
            seeds: of the shuffling; None leaves captions and steps in the file's order.
        """
        shuffle = None if seeds is None else np.random.default_rng((*seeds, 1))
        left: dict[int, np.ndarray] = {}  # by how many share a row: what waits for the next window
        windows = -(-len(self) // WINDOW)
        for number, captions in enumerate(self._windows(None if seeds is None else np.random.default_rng(seeds))):
            steps = self._steps(captions, size, left, final=number + 1 == windows)
            for i in range(len(steps)) if shuffle is None else shuffle.permutation(len(steps)):
                yield steps[i]

    def count_bucketed(self, size: int) -> int:
        """Steps of `bucketed`; the same for all seeds."""
        full = left = 0
        for together, captions in self.sizes.items():
            whole = _whole(size, together)
            full += (captions - 1) // whole
            left += (captions - 1) % whole + 1
        return full - (-left // size)

    def _windows(self, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
        """All captions, `WINDOW` or so at a time, those of a row in one window."""
        count = -(-len(self) // BLOCK)
        if len(self) <= WINDOW:
            yield np.arange(len(self)) if rng is None else rng.permutation(len(self))
            return
        numbers = np.arange(count) if rng is None else rng.permutation(count)
        for chosen in np.array_split(numbers, -(-len(self) // WINDOW)):
            captions = np.concatenate([self._block(number) for number in chosen.tolist()])
            yield captions if rng is None else rng.permutation(captions)

    def _block(self, number: int) -> np.ndarray:
        """Neighbours in the file; a row at the edge belongs to the block it begins in."""
        first, last = (self._edge(min(at * BLOCK, len(self))) for at in (number, number + 1))
        return np.arange(first, last) if self.grouped is None else np.array(self.grouped[first:last])

    def _edge(self, at: int) -> int:
        if self.grouped is None or at == len(self):
            return at
        after = self.grouped[at : at + MOST_TOGETHER]
        begins = np.flatnonzero(self.leaders(after) == after)
        return at + int(begins[0]) if len(begins) else at + len(after)

    def _steps(self, captions: np.ndarray, size: int, left: dict[int, np.ndarray], final: bool) -> list[np.ndarray]:
        """The steps of a window; what would make an incomplete one is put into `left`, or comes last."""
        captions = self._by_row(captions)
        begins = np.flatnonzero(self.begins_row(captions))
        counts = np.diff(begins, append=len(captions))
        together = np.repeat(counts, counts)  # captions in the row of each
        steps = []
        for count in self.sizes:
            whole = _whole(size, count)
            waiting = np.concatenate([left.get(count, captions[:0]), captions[together == count]])
            if not len(waiting):
                continue
            ready = len(waiting) if final else (len(waiting) - 1) // whole * whole
            sorted_steps = list(self._sorted(waiting[:ready], whole))
            left[count] = sorted_steps.pop() if final else waiting[ready:]
            steps += sorted_steps
        if final:
            steps += self._sorted(np.concatenate([left[count] for count in self.sizes]), size)
        return steps

    def _by_row(self, captions: np.ndarray) -> np.ndarray:
        """The captions of a row side by side, at the place of its first one."""
        if self.leader is None:
            return captions
        place, sorter = np.arange(len(captions)), np.argsort(captions)
        of_leader = sorter[np.searchsorted(captions, self.leader[captions], sorter=sorter)]
        return captions[np.lexsort((place, of_leader))]

    def _sorted(self, captions: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Captions, those of a row side by side, in steps of this size; pools of steps are sorted by row length."""
        for start in range(0, len(captions), pool := POOL_STEPS * size):
            part = captions[start : start + pool]
            row = np.cumsum(self.begins_row(part))
            part = part[np.argsort(np.bincount(row, self.lengths(part))[row], kind="stable")]
            yield from (part[i : i + size] for i in range(0, len(part), size))


def _whole(size: int, together: int) -> int:
    """Captions of a step of rows of `together` captions each: rows are cut where not even one fits."""
    return size // together * together or size


def shared_rows(features: Features) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """Captions by the row they stand in, `MOST_TOGETHER` at most of one image; sorted on disk.

    Returns:
        all captions, those of a row side by side, int64 [M]; the first caption of each one's row, int64 [M]; and
        the number of captions by how many share their row.
    """
    count, first = len(features.caption_rows), first_rows(features)
    keys, leader = scratch(count, np.int64), scratch(count, np.int64)
    for block in blocks(count):
        keys[block] = first[features.caption_rows[block]] << _CAPTION_BITS
        keys[block] |= np.arange(block.start, block.stop)
    keys.sort()
    begin, image = 0, -1  # of the images so far: where the last one's captions begin, and which it is
    for block in blocks(count):
        place, images = np.arange(block.start, block.stop), keys[block] >> _CAPTION_BITS
        begins = np.maximum.accumulate(np.where(np.diff(images, prepend=image) != 0, place, begin))
        begin, image = int(begins[-1]), int(images[-1])
        captions = keys[block] & ((1 << _CAPTION_BITS) - 1)
        leader[captions] = keys[place - (place - begins) % MOST_TOGETHER] & ((1 << _CAPTION_BITS) - 1)
    for block in blocks(count):
        keys[block] &= (1 << _CAPTION_BITS) - 1
    return keys, leader, _sizes(keys, leader)


def _sizes(grouped: np.ndarray, leader: np.ndarray) -> dict[int, int]:
    """The number of captions by how many share their row, ascending."""
    rows = np.zeros(MOST_TOGETHER + 1, np.int64)
    waiting = grouped[:0]  # the last row of a block may go on in the next
    for block in blocks(len(grouped)):
        captions = np.concatenate([waiting, grouped[block]])
        begins = np.flatnonzero(leader[captions] == captions)
        cut = len(captions) if block.stop == len(grouped) else int(begins[-1])
        rows += np.bincount(np.diff(begins[begins < cut], append=cut), minlength=len(rows))
        waiting = captions[cut:]
    return {int(count): int(rows[count] * count) for count in np.flatnonzero(rows)}


def first_rows(features: Features) -> np.ndarray:
    """For each row its image's first row, where that has the same embedding, int64 [N]: old files repeat images."""
    images, count = features.row_images, features.num_images
    first_row, first = scratch(int(images.max()) + 1, np.int64), scratch(count, np.int64)
    for block in reversed([*blocks(count)]):  # of the rows of one image the first is written last
        first_row[images[block][::-1]] = np.arange(block.start, block.stop)[::-1]
    for block in blocks(count):
        first[block] = first_row[images[block]]
    for block in blocks(count, ROWS_TOGETHER):
        rows = np.arange(block.start, block.stop)
        repeated = rows[first[block] != rows]
        if len(repeated):
            same = (features.rows(repeated) == features.rows(first[repeated])).all(dim=1).numpy()
            first[repeated[~same]] = repeated[~same]
    return first
