"""The Penn Treebank tokenizer without Java: by hand-checked captions, and against Stanford's own."""

from __future__ import annotations

import csv

import pytest

from clipcap.evaluation.metrics import java
from clipcap.scoring.ptb_tokenizer import ptb_tokenize

# Captions and what Stanford's PTBTokenizer 3.4.1 gives for them, in lower case and without the punctuation of COCO.
KNOWN = {
    "": "",
    " . ": "",
    "A man in a red shirt .": "a man in a red shirt",
    "Two dogs, one brown; one black!": "two dogs one brown one black",
    "The dog's toys and the dogs' toys": "the dog 's toys and the dogs toys",
    "They can't, won't and don't; it's what we'll see": "they ca n't wo n't and do n't it 's what we 'll see",
    "He didn’t: it’s what they’ve": "he did n't it 's what they 've",
    "I cannot, I'm gonna": "i can not i 'm gon na",
    "ma'am, y'all at O'Brien's: d'oeuvres at 5 o'clock": "ma'am y' all at o'brien 's d'oeuvres at 5 o'clock",
    "rock 'n' roll, fish 'n chips, 'til '90s": "rock 'n' roll fish 'n chips 'til '90s",
    "a well-muscled dog - half-eaten -- tug-of-war": "a well-muscled dog half-eaten tug-of-war",
    "Dogs ( black ) [brown] {white}": "dogs -lrb- black -rrb- -lsb- brown -rsb- -lcb- white -rcb-",
    'A sign says " Free Hugs ! " ‘now’ “here”': "a sign says free hugs now here",
    "what ?! no !!! yes ... wait…": "what ?! no !!! yes wait",
    "the U.S. team, Mr. Smith and Dr. Who etc.": "the u.s. team mr. smith and dr. who etc.",
    "vitamin A. and a dog.": "vitamin a. and a dog",
    "No. 5 and fig. 3, no. Five": "no. 5 and fig. 3 no five",
    "salt & pepper, R&B and M&M's": "salt & pepper r&b and m&m 's",
    "1 1/2 cups, ½ cup, 2/3 cup at 350°F": "1\xa01/2 cups 1/2 cup 2/3 cup at 350 ° f",
    "$5.00, 10% of 1,000 at 10:30am": "$ 5.00 10 % of 1,000 at 10:30 am",
    "and/or salad/soup w/ bread": "and/or salad/soup w / bread",
    "Crème brûlée, jalapeño and café's": "crème brûlée jalapeño and café 's",
    "寿司 です。smile 😀 ♥": "寿司 です 。 smile ♥",
    "see http://example.com/a?b=1. #food @home me@mail.org": "see http://example.com/a?b=1 #food @home me@mail.org",
    "<unk> <|endoftext|> <3 :) :-D": "<unk> < | endoftext | > < 3 :-rrb- :-d",
    "bread &amp; butter": "bread & butter",
    "on the plate.The other": "on the plate.the other",
}


@pytest.mark.parametrize("caption", KNOWN)
def test_a_caption_is_cut_as_by_the_coco_evaluation(caption):
    assert ptb_tokenize([caption]) == [[token for token in KNOWN[caption].split(" ") if token]]


def test_the_known_captions_are_what_stanfords_tokenizer_gives():
    try:
        tokens = java.stanford_tokenize(list(KNOWN))
    except java.Unavailable as error:
        pytest.skip(str(error))
    assert [" ".join(found) for found in tokens] == list(KNOWN.values())


@pytest.mark.parametrize("cut", [ptb_tokenize, java.stanford_tokenize], ids=["python", "java"])
def test_no_white_space_or_odd_character_moves_a_caption_to_another_image(cut):
    captions = ["a\nb", "", "c\r\nd", "e\u2028f", "g\x0bh\x0ci", "\n", "j\x85k\x1cl", "m \udc80 n", "they'll"]
    try:
        tokens = cut(captions)
    except java.Unavailable as error:
        pytest.skip(str(error))
    assert [found[0] if found else "" for found in tokens] == ["a", "", "c", "e", "g", "", "j", "m", "they"]
    assert tokens[0] == ["a", "b"]
    assert tokens[-1] == ["they", "'ll"]


def test_java_cuts_alike_whatever_the_locale(monkeypatch):
    for name, value in {
        "LC_ALL": "POSIX",
        "LANG": "POSIX",
        "JAVA_TOOL_OPTIONS": "-Dfile.encoding=ISO-8859-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        assert java.stanford_tokenize(["crème brûlée 寿司"]) == [["crème", "brûlée", "寿司"]]
    except java.Unavailable as error:
        pytest.skip(str(error))


def test_long_texts_without_blanks_end():
    assert len(ptb_tokenize(["a.b" * 5000, "'" * 5000, "x-" * 5000, "http://" + "a/" * 5000, "<a" * 5000])) == 5


def real_captions(shared, name: str) -> list[str]:
    root = shared / "data"
    if name == "food":
        with (root / "food" / "Captions.csv").open(newline="", encoding="utf-8") as rows:
            return [row["Captions"] for row in csv.DictReader(rows)]
    images = set((root / "flickr8k" / f"Flickr_8k.{name}Images.txt").read_text(encoding="utf-8").split())
    lines = (root / "flickr8k" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[1] for line in lines if line.split("#")[0] in images]


@pytest.mark.parametrize(("name", "number"), [("dev", 2500), ("train", 30000), ("food", 2000)])
def test_real_captions_are_cut_as_by_stanfords_tokenizer(shared, name, number):
    captions = real_captions(shared, name)
    assert len(captions) >= number - 10  # a few lines of the files are out of order
    try:
        wanted = java.stanford_tokenize(captions)
    except java.Unavailable as error:
        pytest.skip(str(error))
    same = sum(found == tokens for found, tokens in zip(ptb_tokenize(captions), wanted, strict=True))
    print(f"{name}: {same} of {len(captions)} captions agree")
    assert same / len(captions) >= 0.999
