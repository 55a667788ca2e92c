"""Captions as language: variety over the set, endings, repetition; cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from clipcap.evaluation.metrics.bootstrap import bootstrap_interval, median, paired_bootstrap, whole_score
from clipcap.evaluation.metrics.language import bad_ending_rows, distinct_rows, repetition_rows
from clipcap.evaluation.metrics.score import BAD_ENDINGS, REPEATED, score

CAPTIONS = ["a red apple on a plate", "a red apple on a", "two eggs"]
TOKENS = [caption.split() for caption in CAPTIONS]


def test_distinct_n_is_the_share_of_different_ngrams_of_all_captions():
    assert whole_score(distinct_rows(TOKENS, 1)) == pytest.approx(7 / 13)  # a red apple on plate two eggs
    assert whole_score(distinct_rows(TOKENS, 2)) == pytest.approx(6 / 10)
    assert whole_score(distinct_rows([["a"], ["b"]], 2)) == 0  # no bigram at all


def test_the_interval_of_distinct_n_covers_what_other_images_of_the_same_kind_give():
    random = np.random.default_rng(0)

    def drawn(images):
        return [[f"w{n}" for n in random.zipf(1.6, size=8).clip(max=3000)] for _ in range(images)]

    values = [whole_score(distinct_rows(drawn(150), 1)) for _ in range(60)]
    covered = 0
    for _ in range(60):
        low, high = bootstrap_interval(distinct_rows(drawn(150), 1), n=300)
        covered += low <= np.mean(values) <= high
    assert covered >= 50  # of 60, 95 % nominally


def test_distinct_n_tells_a_varied_run_from_one_that_repeats_itself():
    varied = [f"a {word} on the {word}s table".split() for word in "abcdefghijklmnopqrstuvwxyz"]
    same = [["a", "dish", "on", "the", "table", "x"]] * len(varied)
    outcome = paired_bootstrap(distinct_rows(varied, 1), distinct_rows(same, 1))
    assert outcome.difference > 0.2 and outcome.low > 0 and outcome.p_value < 0.01


def test_captions_that_break_off_are_counted():
    assert bad_ending_rows([*TOKENS, ["a", "man", "with"], []]).tolist() == [0, 1, 0, 1, 0]


def test_repetition_is_the_share_of_ngrams_that_were_there_before():
    tokens = "a cat and a cat and a dog".split()  # 7 bigrams: a cat, cat and, and a twice each, a dog
    assert repetition_rows([tokens, ["one"]], 2).tolist() == pytest.approx([1 - 4 / 7, 0])


def test_language_is_scored_with_every_evaluation_and_endings_in_words_alone():
    references = [["a red apple on a plate"], ["an apple"], ["two eggs"]]
    found = score(CAPTIONS, references, with_java=False)
    assert found.language[BAD_ENDINGS] == pytest.approx(1 / 3)
    assert {"distinct-1", "distinct-2", REPEATED} < found.language.keys()
    for name, value in found.language.items():
        low, high = found.interval(name)
        assert low <= value <= high
    assert BAD_ENDINGS not in score(CAPTIONS, references, characters=True).language


def test_the_median_is_drawn_over_images():
    ranks = np.array([1.0, 1, 2, 3, 50, 90, 4])
    low, high = bootstrap_interval(ranks, median)
    assert whole_score(ranks, median) == 3 and 1 <= low <= 3 <= high <= 90
    worse = paired_bootstrap(ranks + 5, ranks, median)
    assert worse.difference == 5 and worse.p_value < 0.01
