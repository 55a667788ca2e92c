"""The reward is CIDEr-D of the evaluation, but that the end of a caption can count as a word."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CAPTIONS

from clipcap.evaluation.metrics.score import score
from clipcap.scoring.cider_reward import CiderReward, bad_endings

REFERENCES = [[c, c + " again", "it is " + c][: 1 + i % 3] for i, c in enumerate(CAPTIONS)]
WRITTEN = [
    "a red apple on a plate",
    "two fried eggs",
    "",
    "pizza pizza pizza",
    "Sushi rolls on a",
    "soup, a bowl of it",
]
WRITTEN += ["one donut with pink icing on a wooden table", "carrots and broccoli on a blue plate"]


def test_without_the_end_it_is_the_cider_d_that_evaluate_prints():
    found = CiderReward(REFERENCES, end=False).score(range(8), WRITTEN, [True] * 8)
    expected = score(WRITTEN, REFERENCES, with_java=False).per_image["CIDEr-D"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_scripts_without_blanks_between_words_go_by_character_as_in_evaluate():
    references = [["一只棕色的狗在草地上奔跑", "狗在跑"], ["两艘船停在港口"], ["a red apple"]]
    written = ["一只狗在草地上跑", "两艘船在港口", "a red apple"]
    found = CiderReward(references, end=False).score(range(3), written, [True] * 3)
    expected = score(written, references, with_java=False).per_image["CIDEr-D"]
    assert min(found) > 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_with_it_a_caption_that_breaks_off_loses_the_word():
    reward = CiderReward(REFERENCES)
    [whole, cut] = (reward.score([0], [CAPTIONS[0]], [ended])[0] for ended in (True, False))
    assert whole == pytest.approx(10) and cut < whole
    marked = [[c + " endmark" for c in several] for several in REFERENCES]
    plain = CiderReward(marked, end=False)
    for image, caption in enumerate(WRITTEN):
        expected = plain.score([image], [caption + " endmark"], [True])
        assert reward.score([image], [caption], [True]) == pytest.approx(expected)


def test_other_images_are_scored_with_the_same_frequencies():
    reward = CiderReward(REFERENCES)
    found = reward.score_against(REFERENCES[2:4], WRITTEN[2:4], [True, True])
    assert found == reward.score([2, 3], WRITTEN[2:4], [True, True])


def test_agreement_is_the_weighted_mean_of_the_scores_against_each_image():
    reward, weights = CiderReward(REFERENCES, end=False), [3.0, 1.0, 0.5]
    found = reward.agreement(WRITTEN, REFERENCES[:3], weights)
    each = [reward.score([image] * len(WRITTEN), WRITTEN, [True] * len(WRITTEN)) for image in range(3)]
    np.testing.assert_allclose(found, np.average(each, axis=0, weights=weights), rtol=1e-12, atol=1e-12)


def test_captions_that_end_in_mid_sentence_are_counted():
    assert bad_endings(["a cup on a", "a cup of tea.", "eggs and", ""]) == 0.5
