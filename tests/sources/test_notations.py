"""Captions as notes, scripts, chat models and annotation tools write them down."""

from __future__ import annotations

import json

import pytest
from support.photos import ONE_EACH, TEXTS, album, base64_of, captions, encoded, put, read

from clipcap.errors import ClipcapError

PAIRS = [(f"{i}.jpg", text) for i, text in enumerate(TEXTS, 1)]
TWO_EACH = [(text, f"{text} again") for text in TEXTS]


@pytest.fixture
def photos(tmp_path):
    album(tmp_path / "images")
    return tmp_path


def each(form: str) -> str:
    return "".join(form.format(name, text) for name, text in PAIRS)


BELOW = {
    "a line below": each("{}\n{}\n"),
    "blank lines between": each("{}\n\n{}\n\n"),
    "headings": "# Our photos\n\n" + each("## {}\n\n{}\n\n"),
    "pictures in Markdown": each("![](images/{})\n\n{}\n\n"),
    "numbers and bold": each("1. **{}**\n{}\n"),
    "words for both": each("Image: {}\nCaption: {}\n\n"),
    "words for both in bold": each("**Image:** {}\n**Caption:** {}\n\n"),
    "colons": each("{}:\n{}\n"),
}


@pytest.mark.parametrize("kind", BELOW)
@pytest.mark.parametrize("name", ["captions.txt", "captions.md"])
def test_captions_below_the_names_of_their_photos_are_read(photos, kind, name):
    put(photos / name, BELOW[kind])
    assert captions(read(photos)) == ONE_EACH


def test_several_lines_below_a_name_are_captions_of_one_photo(photos):
    put(photos / "captions.txt", each("{0}\n{1}\n{1} again\n\n"))
    assert captions(read(photos)) == TWO_EACH


@pytest.mark.parametrize(
    "text",
    [repr(PAIRS), "\n".join(map(repr, PAIRS)), "\n".join(repr(list(pair)) for pair in PAIRS), each("{}={}\n")],
    ids=["a list of tuples", "a tuple a line", "a list a line", "an equals sign"],
)
def test_pairs_as_scripts_print_them_are_read(photos, text):
    put(photos / "captions.txt", text)
    assert captions(read(photos)) == ONE_EACH


def test_columns_of_captions_that_have_one_name_are_captions_of_one_photo(photos):
    put(photos / "captions.csv", "image,caption,caption\n" + each("{0},{1},{1} again\n"))
    assert captions(read(photos)) == TWO_EACH


def test_a_column_of_captions_without_a_word_in_it_is_passed_over(photos):
    put(photos / "captions.csv", "image,caption,text\n" + each("{},,{}\n"))
    assert captions(read(photos)) == ONE_EACH
    rows = [{"filename": name, "Comments": [], "label": [text]} for name, text in PAIRS]
    assert captions(read(put(photos / "all.jsonl", "\n".join(map(json.dumps, rows))))) == ONE_EACH


def test_dates_and_times_are_no_sentences(photos):
    put(photos / "form.csv", "When,Which file,What is there\n" + each("2024/05/01 10:00:00 AM GMT+1,{},{}\n"))
    assert captions(read(photos)) == ONE_EACH


ANSWERS = {
    "CogVLM's captions": lambda name, text: {"image": name, "captions": [{"role": "caption", "content": text}]},
    "Florence's tasks": lambda name, text: {"image": name, "<MORE_DETAILED_CAPTION>": text},
    "a server's answers in a batch": lambda name, text: {
        "custom_id": "x",
        "image": name,
        "response": {"body": {"choices": [{"message": {"role": "assistant", "content": text}}]}, "status_code": 200},
    },
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_of_models_are_read_as_their_tools_store_them(photos, kind):
    rows = [ANSWERS[kind](name, text) for name, text in PAIRS]
    assert captions(read(put(photos / "captions.json", rows))) == ONE_EACH
    by_name = {row.pop("image"): row for row in rows}
    assert captions(read(put(photos / "captions.json", by_name))) == ONE_EACH


def test_captions_with_two_ampersands_between_are_split(tmp_path):
    rows = "".join(f"{i}\t{i}\t{text}&&{text} again\t{base64_of(i)}\n" for i, text in enumerate(TEXTS))
    assert captions(read(put(tmp_path / "caption_val.tsv", rows))) == TWO_EACH


@pytest.mark.parametrize("names", [("image.jpg", "caption.txt"), ("DSC_1.jpg", "description.txt")])
def test_a_photo_and_a_text_alone_in_their_folder_belong_together(tmp_path, names):
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"p{i}" / names[0], encoded(i))
        put(tmp_path / f"p{i}" / names[1], text)
    put(tmp_path / "p5" / "a.jpg", encoded(5))
    source = read(tmp_path)
    assert captions(source) == ONE_EACH and source.left_out == {"without a caption": 1}
    assert "4 photos with the only text in its folder as the caption" in source.notes


def test_one_text_in_the_folder_of_one_photo_proves_nothing(tmp_path):
    put(tmp_path / "1.jpg", encoded(1))
    put(tmp_path / "shopping.txt", "milk and eggs")
    with pytest.raises(ClipcapError, match="1 caption file without a photo"):
        read(tmp_path)


def test_labels_of_classes_do_not_replace_the_texts_beside_photos(tmp_path):
    album(tmp_path)
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"{i}.txt", text)
    put(tmp_path / "labels.csv", "image,label\n1.jpg,kite\n2.jpg,cup\n3.jpg,bench\n4.jpg,tram\n")
    source = read(tmp_path)
    assert captions(source) == ONE_EACH and "other files, not read: .csv 1" in source.notes


def test_tables_called_captions_come_before_others_of_their_split(tmp_path):
    for split, numbers in (("train", (1, 2, 3)), ("valid", (4,))):
        album(tmp_path / split, count=len(numbers), start=numbers[0])
        for kind, cell in (("captions", lambda i: TEXTS[i - 1]), ("concepts", lambda i: f"C{i};C7")):
            put(tmp_path / f"{split}_{kind}.csv", "ID,Text\n" + "".join(f"{i},{cell(i)}\n" for i in numbers))
    source = read(tmp_path)
    assert sorted(captions(source)) == sorted(ONE_EACH)
    assert {record.split for record in source.records} == {"train", "val"}


def test_several_photos_in_a_row_are_reported_as_such(tmp_path):
    album(tmp_path / "images")
    rows = {
        split: [{"id": split, "report": TEXTS[0], "image_path": ["1.jpg", "2.jpg"]}] for split in ("train", "val")
    }
    put(tmp_path / "annotation.json", rows)
    with pytest.raises(ClipcapError, match=r"2 rows left out: .*2 images in one row, expected one"):
        read(tmp_path)
