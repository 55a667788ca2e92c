"""Further pairs in a captioner's training: their share of every step, and nothing changed without one."""

from __future__ import annotations

import numpy as np
import pytest
from support.small import feature_file, run, same, weights

from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.training.dataset import BatchShare, CaptionDataset
from clipcap.training.extra_pairs import ExtraPairs
from clipcap.training.objective import Steps


@pytest.fixture
def steps(tmp_path, tokenizer):
    data = CaptionDataset(read_features(feature_file(tmp_path / "real.pkl")), tokenizer, 20)
    return Steps(data, 4, 7, BatchShare(0, 1, 4))


def test_a_share_of_every_step_is_of_the_further_pairs_and_an_epoch_goes_once_through_the_others(steps, tmp_path):
    extra = read_features(feature_file(tmp_path / "extra.pkl", ("a dog", "a cat", "a bus"), seed=5))
    mixed = ExtraPairs(steps, extra, 0.5)
    windows = list(mixed.windows(epoch=0, skip=0))
    own = len(steps.data)
    assert len(windows) == mixed.steps_per_epoch() == 4
    numbers = [np.concatenate([batch.captions for batch in window]) for window in windows]
    assert [(sum(n < own), sum(n >= own)) for n in map(np.asarray, numbers)][:3] == [(2, 2)] * 3
    seen = np.concatenate(numbers)
    assert sorted(seen[seen < own]) == list(range(own))


def test_a_resumed_epoch_goes_on_with_the_same_steps(steps, tmp_path):
    extra = read_features(feature_file(tmp_path / "extra.pkl", ("a dog", "a cat", "a bus"), seed=5))
    whole, rest = (list(ExtraPairs(steps, extra, 0.5).windows(1, skip)) for skip in (0, 2))
    for window, other in zip(whole[2:], rest, strict=True):
        assert [b.captions.tolist() for b in window] == [b.captions.tolist() for b in other]


def test_a_share_of_zero_gives_the_weights_without_the_set(tmp_path, lm_folder):
    data = feature_file(tmp_path / "real.pkl")
    extra = feature_file(tmp_path / "extra.pkl", ("a dog", "a cat", "a bus"), seed=5)
    plain = weights(run(data, lm_folder, tmp_path / "plain") / "clipcap-last")
    none = weights(run(data, lm_folder, tmp_path / "none", extra=str(extra), extra_share=0.0) / "clipcap-last")
    some = weights(run(data, lm_folder, tmp_path / "some", extra=str(extra), extra_share=0.34) / "clipcap-last")
    assert same(plain, none)
    assert not same(plain, some)


def test_a_step_too_small_for_both_is_refused(steps, tmp_path):
    extra = read_features(feature_file(tmp_path / "extra.pkl", ("a dog",), seed=5))
    with pytest.raises(ClipcapError, match="raise --bs"):
        ExtraPairs(steps, extra, 0.05)
