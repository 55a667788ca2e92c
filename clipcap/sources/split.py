"""Training and validation images, split by image, never by caption."""

from __future__ import annotations

from dataclasses import replace
from math import floor

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.runtime.disk_arrays import blocks, scratch
from clipcap.sources.record import Record


def held_out(count: int, size: int, seed: int) -> np.ndarray:
    """Which of `count` images are held out, bool [count]: `size` of them, those of sklearn's `train_test_split`.

    Large sets are shuffled in a temporary file, which sklearn does in memory.
    """
    order = scratch(count, np.int64)
    for block in blocks(count):
        order[block] = np.arange(block.start, block.stop)
    np.random.RandomState(seed).shuffle(order)
    found = scratch(count, bool)
    for block in blocks(size):
        found[order[block]] = True
    return found


def split_records(records: list[Record], train_size: float, seed: int) -> list[Record]:
    """The records in their order, a share `train_size` of them marked "train", the rest "val".

    Raises:
        ClipcapError: train or val would be empty.
    """
    count = len(records)
    in_train = floor(train_size * count) if 0 < train_size < 1 else 0
    if not 0 < in_train < count:
        raise ClipcapError(
            f"--train_size {train_size} of {count} images leaves train or val empty: choose another share"
        )
    val = held_out(count, count - in_train, seed)
    return [replace(record, split="val" if here else "train") for record, here in zip(records, val.tolist())]
