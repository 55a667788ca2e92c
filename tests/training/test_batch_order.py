"""Sets larger than a window: shuffled in blocks of neighbours, each caption once, rows whole, by length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import feature_file

from clipcap.features.files import read_features
from clipcap.runtime import disk_arrays
from clipcap.training import batch_order
from clipcap.training.batch_order import MOST_TOGETHER, BatchOrder, shared_rows

WINDOW, BLOCK = 64, 8


@pytest.fixture(scope="module", autouse=True)
def small():
    """Windows of 64 captions, and 50 entries gone through at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_order, "WINDOW", WINDOW)
        patch.setattr(batch_order, "BLOCK", BLOCK)
        patch.setattr(disk_arrays, "BLOCK", 50)
        yield


def features_of(folder, repeated=False):
    """300 captions of images with 1 to 11; `repeated`: a row for each caption, those of an image apart."""
    random = np.random.default_rng(1)
    counts = random.permutation([*range(1, 12)] * 5)[:50]
    path = feature_file(folder / "f.pkl", [("a",) * count for count in counts])
    features = read_features(path)
    if not repeated:
        return features
    rows = random.permutation(np.repeat(np.arange(len(counts)), counts))
    old = {name: [getattr(features, name)[row] for row in rows] for name in ("image_ids", "image_paths")}
    changes = {"embeddings": features.embeddings[rows], "caption_rows": np.arange(len(rows)), **old}
    return type(features)(captions=features.captions, meta=features.meta, path=path, **changes)


@pytest.fixture(scope="module", params=["apart", "together", "repeated"])
def many(request, tmp_path_factory):
    features = features_of(tmp_path_factory.mktemp("f"), request.param == "repeated")
    lengths = np.random.default_rng(0).integers(1, 40, len(features.captions))
    starts = np.concatenate([[0], lengths.cumsum()])
    return BatchOrder(starts, None if request.param == "apart" else features)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 350), seeds=st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_each_caption_is_in_one_step_and_their_number_is_known(many, size, seeds):
    steps = list(many.bucketed(size, seeds))
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(many)))
    assert len(steps) == many.count_bucketed(size)
    assert all(1 <= len(step) <= size for step in steps)


@pytest.mark.parametrize("size", [8, 24, 40])
def test_rows_stay_whole_except_in_the_last_steps(many, size):
    steps = list(many.bucketed(size, (0, 0)))
    step_of = np.empty(len(many), int)
    for number, step in enumerate(steps):
        step_of[step] = number
    cut = [lead for lead in set(many.leaders(np.arange(len(many))).tolist())
           if len(set(step_of[many.leaders(np.arange(len(many))) == lead])) > 1]  # fmt: skip
    assert len(cut) <= MOST_TOGETHER  # an edge of each kind of row that is left over
    rows = [np.bincount(np.cumsum(many.begins_row(step)))[1:] for step in steps]
    assert sum(len(set(counts)) > 1 for counts in rows) <= len(many.sizes)


def test_similar_lengths_share_a_step(many):
    def spread(steps):
        rows = [np.bincount(np.cumsum(many.begins_row(step)), many.lengths(step))[1:] for step in steps]
        return np.median([row.std() for row in rows])

    in_file = np.arange(len(many)) if many.grouped is None else many.grouped
    assert spread(many.bucketed(8, (0, 0))) < spread(np.array_split(in_file, 40)) / 2


def test_an_epoch_has_its_own_order(many):
    orders = [np.concatenate(list(many.bucketed(8, seeds))).tolist() for seeds in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert orders[0] == orders[1]
    assert len({tuple(batch_order) for batch_order in orders}) == 3


def test_a_window_is_read_in_blocks_from_all_over_the_file(many):
    [first, *_] = many._windows(np.random.default_rng(0))
    places = np.arange(len(many)) if many.grouped is None else np.argsort(many.grouped)
    blocks = np.unique(places[first] // BLOCK)
    assert WINDOW // 2 < len(first) < WINDOW * 3 // 2
    assert len(blocks) <= 2 * len(first) / BLOCK  # a row at an edge reaches into the next block
    assert blocks.max() - blocks.min() > len(many) / BLOCK / 2


def test_the_originals_shuffle_is_free_and_drops_what_is_over(many):
    steps = list(many.freely(7, np.random.default_rng(3)))
    expected = np.random.default_rng(3).permutation(len(many))
    assert np.array_equal(np.concatenate(steps), expected[: len(many) // 7 * 7])
    assert len(steps) == many.count_freely(7)


@pytest.mark.parametrize("repeated", [False, True])
def test_rows_hold_captions_of_one_image_eight_at_most(tmp_path, repeated):
    features = features_of(tmp_path, repeated)
    grouped, leader, sizes = shared_rows(features)
    images = features.row_images[features.caption_rows]
    assert sorted(grouped.tolist()) == list(range(len(images)))
    assert np.array_equal(images[leader], images)
    expected = {}
    for count in np.bincount(images):
        for start in range(0, count, MOST_TOGETHER):
            together = int(min(MOST_TOGETHER, count - start))
            expected[together] = expected.get(together, 0) + together
    assert sizes == dict(sorted(expected.items()))
    assert {int(n) for n in np.bincount(leader)[np.unique(leader)]} == set(sizes)
