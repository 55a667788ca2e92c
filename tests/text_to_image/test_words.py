"""The words of classes: the shipped table of ImageNet, a generator's own, and captions with exactly one word."""

from __future__ import annotations

import json

import pytest

from clipcap.errors import ClipcapError
from clipcap.text_to_image.word_table import WordNet, make_table
from clipcap.text_to_image.words import IMAGENET_TABLE, WordClasses, WordTable, load_words, words_of_generator

TABLE = WordTable({"dog": WordClasses(0, 1, (0, 2)), "bus": WordClasses(3, None, (3,))}, ("a", "b", "c", "d"))


def test_the_shipped_table_has_598_words_of_a_thousand_classes():
    table = load_words(IMAGENET_TABLE, 1000)
    assert len(table.words) == 598
    assert "Princeton University" in json.loads(IMAGENET_TABLE.read_text())["notice"]
    assert table.name("shark") == "great white shark"


def test_the_shipped_table_is_that_of_the_reference(shared):
    expected = json.loads((shared / "fixtures" / "imagenet-words" / "imagenet_words.json").read_text())
    table = load_words(IMAGENET_TABLE, 1000)
    given = {entry["word"]: number for number, entry in enumerate(expected["classes"]) if entry["word"]}
    assert {word: entry.given for word, entry in table.words.items()} == given
    assert {word: entry.sense for word, entry in table.words.items()} == expected["word_classes"]
    assert all(given[word] in entry.under for word, entry in table.words.items())


def test_flickr8k_has_13135_captions_of_one_word(shared):
    lines = (shared / "data" / "flickr8k" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    captions = [line.split("\t")[1] for line in lines if "\t" in line]
    for strip in (False, True):
        pairs = load_words(IMAGENET_TABLE, 1000).one_word_captions(captions, strip)
        assert (len(captions), len(pairs), len({word for _, word in pairs})) == (32_960, 13_135, 355)


def test_a_caption_counts_where_it_holds_one_word_however_often():
    captions = ["A dog runs", "a dog and a dog", "the dog on the bus", "nothing here", "a dog."]
    assert TABLE.one_word_captions(captions) == [("A dog runs", "dog"), ("a dog and a dog", "dog"), ("a dog.", "dog")]
    assert len(TABLE.one_word_captions(captions, strip=False)) == 2


def test_the_target_of_a_word_is_its_class_its_sense_or_all_below_it():
    assert [TABLE.words["dog"].rows(target) for target in ("word", "sense", "mean")] == [(0,), (1,), (0, 2)]
    assert TABLE.words["bus"].rows("sense") == ()


def test_a_generator_without_words_names_the_flag(tmp_path):
    with pytest.raises(ClipcapError, match="--words FILE"):
        words_of_generator(tmp_path, 4)
    assert len(words_of_generator(tmp_path, 1000).words) == 598


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no table of words"),
        ('{"classes": 3}', "no table of words"),
        ('{"classes": [{"name": "a", "words": ["x"]}]}', "names 1 classes, the generator has 2"),
        ('{"classes": [{"name": "a", "words": ["x"]}, {"name": "b", "words": ["x"]}]}', "stands for two classes"),
        ('{"classes": [{"name": "a", "words": []}, {"name": "b", "words": []}]}', "holds no words"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(ClipcapError, match=message):
        load_words(tmp_path / "words.json", 2)


NOUNS = """\
  1 The notice of WordNet.
00000001 05 n 02 hound 0 hound_dog 0 001 @ 00000003 n 0000 | a dog
00000002 05 n 01 pug 0 001 @ 00000003 n 0000 | a small dog
00000003 05 n 01 Dog 0 003 @ 00000004 n 0000 ~ 00000001 n 0000 ~ 00000002 n 0000 | barks
00000004 05 n 01 animal 0 001 ~ 00000003 n 0000 | lives
"""
INDEX = """\
  1 The notice of WordNet.
dog n 1 2 @ ~ 1 0 00000003
animal n 1 1 ~ 1 0 00000004
"""


def test_words_climb_from_lemma_to_hypernym_and_are_given_once(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "index.noun").write_text(INDEX)
    table = make_table(WordNet(tmp_path), [2, 1], {"dog", "animal"})
    assert table["notice"] == "The notice of WordNet."
    assert table["classes"] == ["pug", "hound"]
    assert table["words"] == {
        "dog": {"class": 0, "sense": 1, "under": [0, 1]},
        "animal": {"class": 1, "sense": None, "under": [0, 1]},
    }
