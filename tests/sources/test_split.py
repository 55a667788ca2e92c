"""The images that are held out stay the same ones: those of sklearn's `train_test_split`."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from clipcap.errors import ClipcapError
from clipcap.runtime import disk_arrays
from clipcap.sources.record import ImageRef, Record
from clipcap.sources.split import held_out, split_records


def records(count):
    return [Record(str(i), ImageRef(f"{i}.jpg"), ("a photo",)) for i in range(count)]


@pytest.mark.parametrize("train_size", [0.1, 0.29, 0.7, 0.8, 0.9, 0.999])
@pytest.mark.parametrize("count", [2, 3, 10, 57, 1000])
def test_a_source_is_split_as_by_sklearn(count, train_size, monkeypatch):
    monkeypatch.setattr(disk_arrays, "BLOCK", 64)
    try:
        train, _ = train_test_split(range(count), train_size=train_size, random_state=42)
    except ValueError:
        with pytest.raises(ClipcapError, match=f"--train_size {train_size} of {count} images leaves"):
            split_records(records(count), train_size, 42)
        return
    expected = ["train" if i in set(train) else "val" for i in range(count)]
    assert [record.split for record in split_records(records(count), train_size, 42)] == expected


def test_the_images_held_out_are_these():
    assert np.flatnonzero(held_out(20, 5, 42)).tolist() == sorted(np.random.RandomState(42).permutation(20)[:5])
    assert np.flatnonzero(held_out(20, 5, 42)).tolist() == [0, 1, 8, 15, 17]


@pytest.mark.parametrize("train_size", [0.0, 1.0, -0.5, 2.0])
def test_a_share_that_leaves_nothing_is_refused(train_size):
    with pytest.raises(ClipcapError, match="leaves train or val empty"):
        split_records(records(10), train_size, 42)
