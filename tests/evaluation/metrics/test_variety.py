"""Several captions of an image: how much they differ."""

from __future__ import annotations

import math

import pytest
from pycocoevalcap.bleu.bleu import Bleu

from clipcap.evaluation.metrics.score import MBLEU, SELF_CIDER, score
from clipcap.evaluation.metrics.variety import self_cider

REFERENCES = [["a red apple on a plate"], ["two fried eggs in a pan"], ["a bowl of hot soup"]]
SEVERAL = [
    ["a red apple on a plate", "a red apple on a table", "an apple"],
    ["two fried eggs in a pan", "two eggs in a pan", "eggs and a pan"],
    ["a bowl of hot soup", "a bowl of soup", "hot soup in a bowl"],
]


def tokens(texts):
    return [text.split() for text in texts]


def test_captions_that_are_the_same_have_no_variety_and_strangers_have_all():
    same, strangers = ["red apple plate"] * 3, ["red apple plate", "two fried eggs", "bowl hot soup"]
    found = self_cider([tokens(same), tokens(strangers)], [tokens(texts) for texts in REFERENCES])
    assert found.tolist() == pytest.approx([0, 1], abs=1e-6)


def test_variety_grows_with_differences():
    nearer = ["a red apple on a plate", "a red apple on a plate", "a red apple on a table"]
    values = self_cider([tokens(nearer), tokens(SEVERAL[0])], [tokens(texts) for texts in REFERENCES])
    assert 0 < values[0] < values[1] < 1


def test_two_captions_give_the_formula_by_hand():
    """For K = 2 with similarity s the eigenvalues are 1 + s and 1 - s."""
    # "apple" and "egg" are in one of two images each, "a" in both: weight log 2, log 2 and 0.
    found = self_cider([[["a", "apple"], ["a", "egg", "apple"]]], [[["a", "apple"]], [["a", "egg"]]])
    unigram = 1 / math.sqrt(2)  # cosine of (apple) and (egg, apple)
    s = unigram / 4  # no bigram in common, and no longer n-gram in both
    roots = [math.sqrt(1 + s), math.sqrt(1 - s)]
    assert found[0] == pytest.approx(-math.log2(roots[0] / sum(roots)))


def test_mbleu_is_the_mean_of_bleu_against_the_other_captions():
    found = score([texts[0] for texts in SEVERAL], REFERENCES, with_java=False, several=SEVERAL)
    values = []
    for place in range(3):
        given = {i: [texts[place]] for i, texts in enumerate(SEVERAL)}
        others = {i: texts[:place] + texts[place + 1 :] for i, texts in enumerate(SEVERAL)}
        values.append(Bleu(4).compute_score(others, given, verbose=0)[0][3])
    assert found.language[MBLEU] == pytest.approx(sum(values) / 3, rel=1e-6)
    low, high = found.interval(MBLEU)
    assert low <= found.language[MBLEU] <= high
    assert 0 < found.language[SELF_CIDER] < 1
    assert any(note == "mBLEU-4, self-CIDEr: of 3 captions of each image" for note in found.notes)


def test_one_caption_an_image_has_no_variety_to_measure():
    found = score([texts[0] for texts in SEVERAL], REFERENCES, with_java=False, several=[[t[0]] for t in SEVERAL])
    assert MBLEU not in found.language and SELF_CIDER not in found.language
