"""Caption metrics, against numbers of the official evaluation."""

from __future__ import annotations

import json

import pytest

from clipcap import metrics
from clipcap.metrics import cider, distinct_share, words


def test_words_are_lower_case_and_without_punctuation():
    assert words("A chef's Salad, well-done!") == ["a", "chef's", "salad", "well", "done"]


def test_distinct_share():
    assert distinct_share(["A dog.", "a dog", "a cat", "a cow"]) == 0.75
    assert distinct_share([]) == 0


def test_cider_of_exact_captions_is_ten_and_of_others_nought():
    captions = ["a red apple on a plate", "two eggs with green herbs", "one long bowl of noodle soup"]
    assert cider(captions, [[c] for c in captions]) == pytest.approx(10)
    assert cider(["x y z w"] * 3, [[c] for c in captions]) == 0
    assert cider(captions[:1], [captions[:1]]) == 0  # every n-gram is in every document
    assert cider([""] * 3, [[c] for c in captions]) == 0
    assert cider([], []) == 0


def test_cider_equals_the_official_evaluation(shared):
    root = shared / "data" / "caption_eval"
    candidates = (root / "nlg-eval" / "hyp.txt").read_text().split("\n")[:2]
    references = zip(*((root / "nlg-eval" / f"ref{i}.txt").read_text().split("\n")[:2] for i in (1, 2)))
    assert cider(candidates, list(references)) == pytest.approx(1.242192, abs=1e-6)


def test_cider_of_500_real_captions_equals_the_official_evaluation(shared, monkeypatch):
    root = shared / "data" / "caption_eval" / "flickr8k_dev_human"
    found, wanted = (json.loads((root / f"{name}_ptb_tokenized.json").read_text()) for name in ("cands", "refs"))
    official = json.loads((root / "official_scores.json").read_text())["corpus"]["CIDEr"]
    captions, references = list(found.values()), [wanted[name] for name in found]
    assert cider(captions, references) == pytest.approx(official, abs=2e-3)
    monkeypatch.setattr(metrics, "words", str.split)  # the tokens of the official evaluation, as they are
    assert cider(captions, references) == pytest.approx(official, abs=1e-9)
