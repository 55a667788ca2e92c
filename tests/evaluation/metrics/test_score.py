"""Caption metrics, against numbers of the official evaluation and against cases that can be counted by hand."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.rouge.rouge import Rouge

from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics import java
from clipcap.evaluation.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from clipcap.evaluation.metrics.clip_score import clip_score, ref_clip_score
from clipcap.evaluation.metrics.rouge import rouge_l
from clipcap.evaluation.metrics.score import (
    bleu_of_counts,
    cider,
    distinct_share,
    meteor_of_counts,
    score,
    score_tokens,
    tokenize,
)

CANDIDATES = [
    "a brown dog runs on the grass",
    "two children play with a red ball",
    "a man rides his bike",
    "a dog on a beach",
    "people sit at a table",
]
REFERENCES = [
    ["A brown dog is running on the grass.", "The dog runs across green grass"],
    ["Two kids play with a ball.", "Children are playing with a big red ball", "kids at play"],
    ["A man is riding a bicycle"],
    ["A black dog runs on the sand near the sea", "The dog's on a beach."],
    ["Four people sit at a table and eat.", "a family eats lunch"],
]
OFFICIAL = {"BLEU-1": "Bleu_1", "BLEU-2": "Bleu_2", "BLEU-3": "Bleu_3", "BLEU-4": "Bleu_4"}
OFFICIAL |= {"ROUGE-L": "ROUGE_L", "CIDEr-D": "CIDEr", "METEOR": "METEOR"}


@pytest.fixture(scope="module", params=[True, False], ids=["java", "python"])
def with_java(request) -> bool:
    """Whether captions are cut into tokens by Java; METEOR takes its time to start, and has tests of its own."""
    if request.param:
        needs(java.stanford_tokenize, [])
    return request.param


def needs(program, *arguments):
    """What a Java program gives, or skip."""
    try:
        return program(*arguments)
    except java.Unavailable as error:
        pytest.skip(str(error))


def tokens_of(captions, references, with_java: bool):
    """Tokens of the captions, and of the references by image."""
    texts = iter(tokenize([*captions, *(text for several in references for text in several)], with_java=with_java)[0])
    return [next(texts) for _ in captions], [[next(texts) for _ in several] for several in references]


def agrees(scores, official: dict[str, float], tolerance: float) -> None:
    """All scores that were found are the official ones; without Java all but METEOR are found."""
    assert len(scores.corpus) >= 6
    for name, value in scores.corpus.items():
        assert value == pytest.approx(official[OFFICIAL[name]], abs=tolerance), name


# Published and official numbers

ONE = (["this is a good test"], [["this is a test", "this is also a test"]])


@pytest.fixture
def published(shared):
    return shared / "data" / "caption_eval"


def nlg_eval(published):
    """Two captions and their references, which are parted by blanks already."""
    hypotheses, *references = (
        [line.split() for line in (published / "nlg-eval" / name).read_text(encoding="utf-8").splitlines() if line]
        for name in ("hyp.txt", "ref1.txt", "ref2.txt")
    )
    return hypotheses, list(zip(*references))


def clipscore(published, name: str):
    captions = json.loads((published / "clipscore" / f"{name}_captions.json").read_text())
    references = json.loads((published / "clipscore" / "refs.json").read_text())
    return list(captions.values()), [references[image] for image in captions]


def test_scores_are_the_published_ones_of_nlg_eval(published):
    scores = score_tokens(*nlg_eval(published), with_java=False)
    numbers = {"Bleu_1": 0.55, "Bleu_2": 0.428174, "Bleu_3": 0.284043, "Bleu_4": 0.201143}
    agrees(scores, numbers | {"ROUGE_L": 0.522104, "CIDEr": 1.242192}, 5.1e-7)


def test_scores_of_one_image_are_the_published_ones():
    scores = score(*ONE, with_java=False)
    numbers = {"Bleu_1": 0.799999, "Bleu_2": 0.632455, "Bleu_3": 0.5108729, "Bleu_4": 0.0000903602}
    agrees(scores, numbers | {"ROUGE_L": 0.9070631, "CIDEr": 0.0}, 1.1e-6)  # cut, not rounded, to six digits
    assert scores.corpus["BLEU-4"] == pytest.approx(0.0000903602, rel=1e-6)
    assert any(note.startswith("CIDEr-D of a single image is 0") for note in scores.notes)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("good", [0.6667, 0.4899, 0.3469, 0.0, 0.4280, 0.5637]), ("bad", [0.4815, 0.2404, 0.1359, 0.0, 0.3121, 0.2790])],
)
def test_scores_are_the_published_ones_of_clipscore(published, with_java, name, numbers):
    scores = score_tokens(*tokens_of(*clipscore(published, name), with_java), with_java=False)
    keys = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    agrees(scores, dict(zip(keys, numbers)), 5.1e-5)


def test_meteor_is_the_published_one(published):
    needs(java.stanford_tokenize, [])
    texts = [clipscore(published, "good"), clipscore(published, "bad"), ONE]
    sets = [nlg_eval(published), *(tokens_of(*each, with_java=True) for each in texts)]
    found = [" ".join(caption) for captions, _ in sets for caption in captions]
    wanted = [[" ".join(caption) for caption in several] for _, references in sets for several in references]
    counts = needs(java.meteor_counts, found, wanted)
    by_set = np.split(counts, [2, 4, 6])
    scores = [meteor_of_counts(rows.sum(axis=0)) for rows in by_set]
    assert scores == [
        pytest.approx(n, abs=d) for n, d in zip([0.295797, 0.3444, 0.1861], [5.1e-7, 5.1e-5, 5.1e-5])
    ] + [pytest.approx(0.44434387, abs=5.1e-9)]


@pytest.mark.parametrize("java_runs", [True, False], ids=["java", "python"])
def test_scores_of_500_real_captions_are_the_official_ones_by_corpus_and_by_image(published, java_runs):
    root = published / "flickr8k_dev_human"
    captions, references, official = (
        json.loads((root / f"{name}.json").read_text()) for name in ("cands", "refs", "official_scores")
    )
    wanted = [references[image] for image in captions]
    if java_runs:
        needs(java.stanford_tokenize, [])
    scores = score(list(captions.values()), wanted, with_java=java_runs)
    assert ("METEOR" in scores.corpus) == java_runs
    agrees(scores, official["corpus"], 1e-9)
    assert (scores.images, scores.references) == (500, 2000)
    for name, values in scores.per_image.items():
        numbers = [official["per_image"][image][OFFICIAL[name]] for image in captions]  # given to six digits
        np.testing.assert_allclose(values, numbers, atol=5.1e-7, err_msg=name)
    assert cider(list(captions.values()), wanted) == pytest.approx(official["corpus"]["CIDEr"], abs=1e-9)


def test_coco_results_have_the_published_number_of_tokens(published, with_java):
    results = json.loads((published / "coco" / "captions_val2014_fakecap_results.json").read_text())
    tokens, _ = tokenize([result["caption"] for result in results], with_java=with_java)
    assert sum(map(len, tokens)) == 9893


# Small cases


def test_bleu_and_rouge_and_cider_count_by_hand():
    scores = score(["the cat sat", "a dog"], [["the cat sat down now"], ["a dog"]], with_java=False)
    assert scores.corpus["BLEU-1"] == pytest.approx(math.exp(1 - 7 / 5))  # every word right, 5 words for 7
    assert scores.per_image["BLEU-1"] == pytest.approx([math.exp(1 - 5 / 3), 1])
    rouge = (1 + 1.2**2) * 1 * 0.6 / (0.6 + 1.2**2 * 1)
    assert scores.per_image["ROUGE-L"] == pytest.approx([rouge, 1])
    assert scores.corpus["ROUGE-L"] == pytest.approx((rouge + 1) / 2)
    assert scores.per_image["CIDEr-D"][1] == pytest.approx(5)  # of four n-gram lengths it has two
    assert scores.corpus["CIDEr-D"] == pytest.approx(scores.per_image["CIDEr-D"].mean())


TOKENS = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=4))
def test_rouge_is_the_official_one(candidate, references):
    assert rouge_l(candidate, references) == Rouge().calc_score([candidate], references)


def test_captions_of_any_length_are_scored():
    """Of the official ROUGE-L, a caption of so many words filled the memory."""
    many = 20_000
    scores = score(["the cat " * many, "a dog"], [["the mouse cat " * many], ["a dog"]], with_java=False)
    assert scores.per_image["ROUGE-L"] == pytest.approx([(1 + 1.2**2) * (2 / 3) / (2 / 3 + 1.2**2), 1])


def test_cider_of_exact_captions_is_ten_and_of_others_nought():
    captions = ["a red apple on a plate", "two eggs with green herbs", "one long bowl of noodle soup"]
    assert cider(captions, [[c] for c in captions]) == pytest.approx(10)
    assert cider(["x y z w"] * 3, [[c] for c in captions]) == 0
    assert cider(captions[:1], [captions[:1]]) == 0  # every n-gram is in every document
    assert cider([""] * 3, [[c] for c in captions]) == 0
    assert cider(captions, [["."]] * 3) == 0
    assert cider([], []) == 0


def test_empty_captions_are_scored_as_wrong():
    scores = score(["", "a dog", "..."], [["a cat"], ["a dog"], ["a bird sings"]], with_java=False)
    for name, values in scores.per_image.items():
        assert values[[0, 2]] == pytest.approx([0, 0], abs=1e-6), name
    assert all(scores.per_image[name][1] > 0.99 for name in ("BLEU-1", "BLEU-2", "ROUGE-L", "CIDEr-D"))


def test_meteor_of_perfect_wrong_and_empty_captions():
    found = ["a dog runs", "a ||| b é", "", "x y", *CANDIDATES]
    wanted = [["a dog runs", "x"], ["a ||| b é"], ["a cat"], ["a cat"], *REFERENCES]
    needs(java.stanford_tokenize, [])
    scores = score(found, wanted)
    assert scores.notes[0] == "tokens: PTBTokenizer of Stanford CoreNLP 3.4.1 (Java)"
    assert ("SPICE" in scores.corpus) != any(note.startswith("SPICE skipped: ") for note in scores.notes)
    values = scores.per_image["METEOR"]
    assert values[:4] == pytest.approx([1, 1, 0, 0])
    assert all(0.1 < value < 0.9 for value in values[4:])
    low, high = scores.interval("METEOR")
    assert low < scores.corpus["METEOR"] < high
    assert scores.corpus["METEOR"] != pytest.approx(values.mean(), rel=1e-3)  # a ratio of sums, no mean


def test_diversity_counts_by_hand():
    scores = score(
        ["A dog.", "a dog", "two cats", "a bird"],
        [["a dog"]] * 4,
        training=["A bird!", "Two cats sit"],
        with_java=False,
    )
    assert scores.diversity == {"distinct": 0.75, "vocabulary": 5, "length": 2, "copied": 0.25}
    assert "copied" not in score(["a"], [["a"]], with_java=False).diversity
    assert distinct_share(["A dog.", "a dog", "a cat", "a cow"]) == 0.75
    assert distinct_share([]) == 0


def test_characters_are_tokens_in_scripts_without_blanks():
    captions = [
        "一只棕色的狗，在跑。",
        "パンが2個 ある",
        "ผัดไทย อร่อย",
        "iPhone 15で撮影",
        "Ｔシャツ",
        "한국어 문장",
        "A dog's café",
    ]
    assert tokenize(captions, characters=True)[0] == [
        list("一只棕色的狗在跑"),
        ["パ", "ン", "が", "2", "個", "あ", "る"],
        ["ผั", "ด", "ไ", "ท", "ย", "อ", "ร่", "อ", "ย"],
        ["iphone", "15", "で", "撮", "影"],
        ["t", "シ", "ャ", "ツ"],
        ["한국어", "문장"],
        ["a", "dog", "s", "café"],
    ]
    scores = score(["一只狗在跑", "两只猫"], [["一只狗在草地上跑"], ["两只猫"]])
    assert scores.corpus["BLEU-1"] == pytest.approx(math.exp(1 - 11 / 8))
    assert "tokens: single characters" in scores.notes
    assert "METEOR skipped: it supports English words only" in scores.notes
    mostly_english = [["一只狗"], ["a dog"], ["two cats"]]
    assert not score(["一只狗", "a dog", "a cat"], mostly_english, with_java=False).characters


# Reports what is missing


def test_without_java_the_notes_say_what_was_used_and_skipped(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    notes = score(CANDIDATES, REFERENCES).notes
    assert notes[0] == "PTBTokenizer skipped: no java on PATH"
    assert notes[1] == "tokens: the Penn Treebank tokenizer of clipcap (Python)"
    assert notes[2] == "images: 5, references: 10"
    assert notes[3] == "METEOR skipped: no java on PATH"
    assert notes[4].startswith("SPICE skipped: no ")


def test_a_java_that_fails_is_no_failure(monkeypatch, tmp_path):
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho 'no runtime present' >&2\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    scores = score(CANDIDATES, REFERENCES)
    assert scores.notes[0] == f"PTBTokenizer skipped: {program} ended with 2 and wrote 'no runtime present'"
    assert "METEOR" not in scores.corpus
    program.write_text("#!/bin/sh\necho a line too few\n")
    notes = score(CANDIDATES, REFERENCES).notes
    assert notes[0] == "PTBTokenizer skipped: Java's tokenizer gave 1 lines for 16"
    assert notes[3] == "METEOR skipped: METEOR answered 'a line too few'"


def test_bad_input_is_one_clear_line(monkeypatch):
    with pytest.raises(ClipcapError, match="2 captions for 1 images"):
        score(["a", "b"], [["a"]], with_java=False)
    with pytest.raises(ClipcapError, match=r"image number 1 \(of 1\) has no reference captions"):
        score(["a", "b"], [["a"], []], with_java=False)
    with pytest.raises(ClipcapError, match="no captions to score"):
        score([], [], with_java=False)
    with pytest.raises(ClipcapError, match="no reference caption has a word"):
        score(["a"], [["."]], with_java=False)
    with pytest.raises(ClipcapError, match="no METEOR among the scores: choose from BLEU-1"):
        score(["a"], [["a"]], with_java=False).interval("METEOR")
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(ClipcapError, match=r"pip install 'clipcap-toolkit\[eval\]'"):
        cider(["a"], [["a"]])


# Bootstrap


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(values, n=4000)
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)
    assert bootstrap_interval(values, n=4000) == (low, high)
    assert bootstrap_interval(values, n=4000, seed=1) != (low, high)


def test_bleu_is_formed_again_from_the_images_drawn():
    scores = score(CANDIDATES, REFERENCES, with_java=False)
    found, wanted = tokens_of(CANDIDATES, REFERENCES, with_java=False)
    drawn = [0, 0, 3, 4, 1, 1, 1]
    scorer = BleuScorer(n=4)
    for i in drawn:
        scorer += (" ".join(found[i]), [" ".join(caption) for caption in wanted[i]])
    official = scorer.compute_score(option="closest")[0]
    sums = scores.counts["BLEU"][drawn].sum(axis=0)
    assert [bleu_of_counts(sums, order) for order in (1, 2, 3, 4)] == pytest.approx(official, abs=1e-12)


def test_every_interval_holds_the_score_and_narrows_with_more_images():
    few = score(CANDIDATES, REFERENCES, with_java=False)
    many = score(CANDIDATES * 20, REFERENCES * 20, with_java=False)
    for name in ("BLEU-4", "BLEU-1", "ROUGE-L"):
        assert many.corpus[name] == pytest.approx(few.corpus[name])
        (low, high), (lower, higher) = many.interval(name), few.interval(name)
        assert low < many.corpus[name] < high
        assert high - low < (higher - lower) / 2


def test_a_better_run_is_told_from_a_worse_and_from_itself():
    good = score(CANDIDATES * 10, REFERENCES * 10, with_java=False)
    bad = score(["a dog", *CANDIDATES[1:4], "a cat"] * 10, REFERENCES * 10, with_java=False)
    for name in ("BLEU-2", "ROUGE-L", "CIDEr-D"):
        found = good.compare(bad, name)
        assert found.difference == pytest.approx(good.corpus[name] - bad.corpus[name])
        assert 0 < found.low < found.difference < found.high
        assert found.p_value < 0.01
        back = bad.compare(good, name)
        assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))
        assert back.p_value == found.p_value
        same = good.compare(good, name)
        assert (same.difference, same.p_value) == (0, 1)


def test_equal_runs_are_called_different_as_often_as_the_level_says():
    random = np.random.default_rng(0)
    called = [paired_bootstrap(*random.normal(size=(2, 60)), n=200, seed=i).p_value < 0.05 for i in range(300)]
    assert 0.02 < np.mean(called) < 0.1


def test_runs_on_different_numbers_of_images_are_not_compared():
    with pytest.raises(ClipcapError, match="2 and 3 images"):
        paired_bootstrap(np.ones(2), np.ones(3))
    with pytest.raises(ClipcapError, match="no images"):
        bootstrap_interval(np.ones(0))


def test_many_images_are_drawn_in_parts():
    values = np.random.default_rng(0).normal(size=3_000_000)  # one draw at a time
    low, high = bootstrap_interval(values, n=3)
    assert abs(low) < 0.01
    assert low < high < 0.01


# CLIPScore


def test_clip_score_is_by_hand():
    images = torch.tensor([[2.0, 0], [0, 3], [1, 1]])
    captions = torch.tensor([[1.0, 1], [0, -1], [5, 5]])
    assert clip_score(images, captions).tolist() == pytest.approx([2.5 / math.sqrt(2), 0, 2.5])
    assert clip_score(images.half(), captions.half()).tolist() == pytest.approx([2.5 / math.sqrt(2), 0, 2.5])


def test_ref_clip_score_is_the_harmonic_mean_with_the_nearest_reference():
    images = torch.tensor([[2.0, 0], [0, 3], [1, 1], [1, 0]])
    captions = torch.tensor([[1.0, 1], [0, -1], [5, 5], [1, 0]])
    references = [torch.tensor([[0.0, 1], [-1, -1]]), captions[1:2], captions[2:3], -captions[3:4]]
    first, second = 2.5 / math.sqrt(2), 1 / math.sqrt(2)
    wanted = [2 * first * second / (first + second), 0, 2 * 2.5 / 3.5, 0]
    assert ref_clip_score(images, captions, references).tolist() == pytest.approx(wanted)
