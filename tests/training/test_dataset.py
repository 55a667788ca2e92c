"""Captions as labelled, length-bucketed batches, the same for any number of processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import META, feature_file

from clipcap.errors import ClipcapError
from clipcap.features.files import read_features, write_features
from clipcap.models.base import IGNORE
from clipcap.models.language_model import load_tokenizer
from clipcap.training.dataset import BatchShare, CaptionDataset
from clipcap.training.tokens import reference_max_length


@pytest.fixture
def make_dataset(tmp_path, tokenizer):
    def build(captions=CAPTIONS, max_tokens=100, **changes) -> CaptionDataset:
        features = read_features(feature_file(tmp_path / "features.pkl", captions))
        return CaptionDataset(features, tokenizer, max_tokens, **changes)

    return build


@pytest.fixture(scope="module")
def irregular(tmp_path_factory, tokenizer):
    """200 captions of 1 to 30 words, for 66 images: one to five of each, which share a prefix."""
    random = np.random.default_rng(5)
    counts = [5] * 20 + [1] * 19 + [2, 3, 4] * 9
    captions = [tuple("a plate " * n for n in random.integers(1, 31, count)) for count in counts]
    features = read_features(feature_file(tmp_path_factory.mktemp("many") / "features.pkl", captions))
    return CaptionDataset(features, tokenizer, 100, share_prefix=True)


@pytest.fixture(scope="module", params=[False, True], ids=["apart", "shared"])
def many(request, irregular, tokenizer):
    """Those captions, sharing prefixes or not."""
    return CaptionDataset(irregular.features, tokenizer, 100, share_prefix=request.param)


def numbers(steps):
    return [int(n) for step in steps for n in step]


def padding(dataset, steps):
    return sum(int((dataset.batch(step).labels == IGNORE).sum()) for step in steps)


def test_labels_are_the_caption_and_the_end_of_text_and_nothing_else(make_dataset, tokenizer):
    dataset = make_dataset()
    batch = dataset.batch(np.array([6, 2]))
    for row, number in enumerate((6, 2)):
        expected = [*tokenizer(CAPTIONS[number])["input_ids"], tokenizer.eos_token_id]
        assert batch.labels[row][batch.labels[row] != IGNORE].tolist() == expected
        assert batch.input_ids[row, : len(expected)].tolist() == expected
        assert torch.equal(batch.given.vectors[row], dataset.features.rows([number])[0])
    assert (batch.labels[0, dataset.lengths[6] :] == IGNORE).all()
    assert batch.labels.shape[1] == max(dataset.lengths[[6, 2]])


def test_end_token_is_a_label_even_when_it_is_also_the_pad_token(make_dataset, tokenizer):
    assert tokenizer.eos_token_id == 0  # the id that input_ids are padded with
    labels = make_dataset().batch(np.arange(3)).labels
    assert ((labels == 0).sum(dim=1) == 1).all()


def test_cut_captions_are_counted_and_do_not_learn_to_end_there(make_dataset, tokenizer):
    lengths = make_dataset().lengths
    limit = int(np.median(lengths))
    dataset = make_dataset(max_tokens=limit)
    assert dataset.truncated == (lengths > limit).sum() > 0
    assert dataset.lengths.max() == limit
    for number, length in enumerate(lengths):
        last = dataset.tokens[dataset.starts[number + 1] - 1]
        assert (last == tokenizer.eos_token_id) == (length <= limit)


def test_captions_of_one_image_have_its_embedding(many):
    batch = many.batch(np.array([7, 8, 9, 10]))  # of the second image, and one of the third
    expected = many.features.rows([1, 1, 1, 2])
    assert torch.equal(batch.given.vectors[batch.row_of], expected)
    assert len(batch.given.vectors) == (2 if many.share_prefix else 4)


class TestCaptionsThatShareAPrefix:
    def rows(self, dataset, batch):
        """(embedding, its captions' tokens) of each row."""
        found = []
        for embedding, ids, labels, positions in zip(
            batch.given.vectors, batch.input_ids, batch.labels, batch.positions
        ):
            assert torch.equal(ids[labels != IGNORE], labels[labels != IGNORE])
            starts = [i for i in range(len(ids)) if positions[i] == 0 and labels[i] != IGNORE]
            ends = [*starts[1:], int((labels != IGNORE).sum())]
            for start, end in zip(starts, ends):
                assert positions[start:end].tolist() == list(range(end - start))
            found.append((embedding.tolist(), [ids[a:b].tolist() for a, b in zip(starts, ends)]))
        return found

    def test_stand_end_to_end_in_one_row(self, make_dataset):
        captions = [("a plate", "a red plate", "a"), ("two eggs",), ("three cookies", "tea")]
        dataset = make_dataset(captions, share_prefix=True)
        found = self.rows(dataset, dataset.batch(np.array([4, 5, 3, 2, 0, 1])))
        tokens = [dataset.tokens[a:b].tolist() for a, b in zip(dataset.starts, dataset.starts[1:])]
        embeddings = dataset.features.rows(slice(None)).tolist()
        expected = [[tokens[4], tokens[5]], [tokens[3]], [tokens[2], tokens[0], tokens[1]]]
        assert found == list(zip([embeddings[i] for i in (2, 1, 0)], expected))

    def test_need_no_positions_where_each_stands_alone(self, make_dataset):
        dataset = make_dataset([("a plate", "a red plate"), ("two eggs",)], share_prefix=True)
        assert dataset.batch(np.array([0, 1])).positions is not None
        assert dataset.batch(np.array([1, 2])).positions is None

    def test_are_eight_at_most(self, make_dataset):
        dataset = make_dataset([("a plate",) * 19, ("two eggs",)], share_prefix=True)
        for steps in (dataset.steps(20, 0, 0), dataset.steps(20, 1, 3)):
            [step] = steps
            assert sorted(np.bincount(dataset.batch(step).row_of).tolist()) == [1, 3, 8, 8]

    def test_are_found_in_old_files_that_repeat_the_embedding(self, tmp_path, tokenizer):
        embeddings = torch.randn(5, 32)[[0, 0, 1, 2, 3]]  # the last image has two different ones
        path = tmp_path / "old.pkl"
        ids = ["a", "a", "b", "c", "c"]
        content = {"image_ids": ids, "image_paths": [None] * 5, "captions": [(text,) for text in "uvwxy"]}
        write_features(path, embeddings=embeddings, meta=META, **content)
        dataset = CaptionDataset(read_features(path), tokenizer, 100, share_prefix=True)
        batch = dataset.batch(np.arange(5))
        assert batch.row_of.tolist() == [0, 0, 1, 2, 3]
        assert torch.equal(batch.given.vectors, embeddings[1:])

    @pytest.mark.parametrize("size", [5, 8, 40, 100])
    def test_stay_in_one_step_unless_the_image_is_left_over(self, irregular, size):
        rows = [np.bincount(irregular.batch(step).row_of) for step in irregular.steps(size, 0, 0)]
        mixed = sum(len(set(counts)) > 1 for counts in rows)
        assert mixed < 5  # of what is left of the images with one, two, … five captions
        assert sum(map(len, rows)) <= 66 + 4  # five such steps at most: four edges where an image is cut

    def test_fill_a_step_up_where_all_images_have_as_many(self, make_dataset):
        dataset = make_dataset([("a plate", "two eggs", "tea")] * 7, share_prefix=True)
        assert sorted(len(step) for step in dataset.steps(10, 0, 0)) == [3, 9, 9]
        assert sorted(len(step) for step in dataset.steps(2, 0, 0)) == [1, *[2] * 10]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 250), epoch=st.integers(0, 3), seed=st.integers(0, 3))
def test_every_caption_is_trained_on_once_per_epoch(many, size, epoch, seed):
    steps = list(many.steps(size, epoch, seed))
    assert sorted(numbers(steps)) == list(range(200))
    assert len(steps) == many.count_steps(size) >= -(-200 // size)
    assert many.share_prefix or len(steps) == -(-200 // size)
    assert all(1 <= len(step) <= size for step in steps)


def test_order_depends_on_epoch_and_seed_alone(many):
    assert numbers(many.steps(8, 1, 5)) == numbers(many.steps(8, 1, 5))
    assert numbers(many.steps(8, 1, 5)) != numbers(many.steps(8, 2, 5))
    assert numbers(many.steps(8, 1, 5)) != numbers(many.steps(8, 1, 6))


@pytest.mark.parametrize("size", [1, 7, 12, 200, 999])
def test_processes_share_the_batches_of_one(many, size):
    def shared(world, micro):
        per_rank = [list(many.windows(size, 0, 3, BatchShare(rank, world, micro))) for rank in range(world)]
        assert len({tuple(len(window) for window in windows) for windows in per_rank}) == 1  # ranks keep in step
        steps = []
        for windows in zip(*per_rank):
            real = [b for window in windows for b in window if (b.labels != IGNORE).any()]
            assert all(len(batch.captions) <= micro for batch in real)
            steps.append(sorted(n for batch in real for n in batch.captions.tolist()))
        return steps

    expected = [sorted(step.tolist()) for step in many.steps(size, 0, 3)]
    assert shared(1, 12) == shared(2, 6) == shared(3, 4) == shared(4, 1) == expected


def test_skipped_steps_are_the_first_ones(many):
    parts = BatchShare(0, 1, 8)
    all_windows = list(many.windows(8, 0, 3, parts))
    for one, other in zip(all_windows[5:], many.windows(8, 0, 3, parts, skip=5), strict=True):
        assert np.array_equal(one[0].captions, other[0].captions)


def test_similar_lengths_share_a_batch(many):
    bucketed = list(many.steps(10, 0, 0))
    shuffled = np.array_split(np.random.default_rng(0).permutation(200), 20)
    assert padding(many, bucketed) < padding(many, shuffled) / (3 if many.share_prefix else 5)
    means = [many.lengths[step].mean() for step in bucketed]
    assert means != sorted(means)  # but short ones do not all come first


def test_a_file_without_captions_is_refused(make_dataset):
    with pytest.raises(ClipcapError, match=r"features.pkl: holds no captions to train on"):
        make_dataset(captions=[()])


def test_reference_recipe_learns_no_end_and_no_token_0_and_drops_the_last_step(make_dataset, tokenizer):
    dataset = make_dataset(reference=True)
    assert tokenizer.eos_token_id not in dataset.tokens
    dataset.tokens[dataset.starts[3]] = 0
    labels = dataset.batch(np.array([3, 4])).labels
    assert labels[0, 0] == IGNORE and (labels[0, 1 : dataset.lengths[3]] != IGNORE).all()
    assert [len(step) for step in dataset.steps(3, 0, 0)] == [3, 3]
    assert [len(step) for step in dataset.steps(40, 0, 0)] == [8]  # a set smaller than one step still trains


def test_reference_length_is_mean_plus_ten_deviations(make_dataset):
    assert reference_max_length(np.array([5, 5, 5, 5])) == 5
    assert reference_max_length(np.array([7])) == 7
    counts = np.array([4] * 400 + [90])  # 4.2 + 10 · 4.3
    assert reference_max_length(counts) == int(counts.mean() + 10 * counts.std(ddof=1)) == 47
    dataset = make_dataset(["a plate"] * 400 + ["a plate " * 45], reference=True)
    assert dataset.truncated == 1
    assert dataset.lengths.max() < 90


def test_reference_tokens_equal_the_originals(shared):
    root = shared / "fixtures" / "reference"
    expected = json.loads((root / "feature-pickles" / "dataset_expected.json").read_text())
    features = read_features(root / "feature-pickles" / expected["file"])
    tokenizer = load_tokenizer(str(root / "tiny-gpt2"))
    dataset = CaptionDataset(features, tokenizer, 1000, reference=True)
    ids = [dataset.tokens[a:b].tolist() for a, b in zip(dataset.starts, dataset.starts[1:])]
    assert ids == expected["tokens"]
    assert features.caption_rows.tolist() == expected["caption_to_row"]
    assert reference_max_length(dataset.lengths) == expected["padded_length"]
    for item in expected["items"]:
        [embedding] = dataset.batch(np.array([item["index"]])).given.vectors
        assert embedding[:8].tolist() == pytest.approx(item["prefix_first8"], abs=1e-6)
        assert embedding.norm().item() == pytest.approx(item["prefix_norm"], rel=1e-5)
