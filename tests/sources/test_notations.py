"""Captions as notes, scripts, chat models and annotation tools write them down."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from support.photos import ONE_EACH, TEXTS, album, base64_of, captions, encoded, put, read

from clipcap.errors import ClipcapError
from clipcap.sources.json_tables import python_object

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


@pytest.mark.parametrize("text", [each("{1}\n{0}\n\n"), each("{1}\n\n{0}\n\n"), each("{1}\n{0}\n")])
def test_captions_above_the_names_of_their_photos_are_not_taken_for_those_of_the_next(photos, text):
    put(photos / "captions.txt", text)
    with pytest.raises(ClipcapError, match="cannot tell the"):
        read(photos)


def test_a_name_above_nothing_is_a_photo_without_a_caption_and_numbers_of_blocks_are_no_captions(photos):
    text = "".join(f"{i}\n{name}\n{'' if i == 3 else caption}\n\n" for i, (name, caption) in enumerate(PAIRS, 1))
    put(photos / "captions.txt", text)
    source = read(photos)
    assert captions(source) == [*ONE_EACH[:2], ONE_EACH[3]] and source.left_out == {"without a caption": 1}


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize("caption", ['"No" is "No"', '"Yes", it says', "'90s cars", 'a "red" one'])
def test_quotes_around_a_part_of_a_caption_are_a_part_of_it(photos, sign, caption):
    if sign in caption:
        caption = caption.replace(sign, "")
    put(photos / "captions.csv", f"image{sign}caption\n1.jpg{sign}{caption}\n2.jpg{sign}two cups\n")
    assert captions(read(photos / "captions.csv")) == [(caption,), ("two cups",)]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("header", [True, False])
def test_a_quoted_caption_that_ends_in_a_backslash_or_goes_on_in_the_first_rows_next_line_stays_whole(
    photos, quoting, header
):
    texts = ['a "red" one, so\nand more', 'the path "C:\\', 'a 5" screen, C:\\', '"a", "b" , c \\']
    frame = pd.DataFrame({"image": [name for name, _ in PAIRS], "caption": texts, "width": 40})
    frame.to_csv(photos / "captions.csv", index=False, header=header, quoting=quoting)
    assert captions(read(photos / "captions.csv")) == [(" ".join(text.split()),) for text in texts]


@pytest.mark.parametrize(
    "first", ["a red kite; x|y", "- a kite", "a kite - x", "a kite: x", "a = b", "a kite\u2014x => y"]
)
@pytest.mark.parametrize("form", ["{0} {1}\n", "{0}\t{1}\n", "{1}\t{0}\n", "{1},{0}\n"])
def test_signs_in_the_first_caption_are_not_taken_for_the_delimiter_of_the_others(photos, first, form):
    rows = [form.format(name, first if name == "1.jpg" else text) for name, text in PAIRS]
    put(photos / "captions.txt", "".join(rows))
    assert captions(read(photos / "captions.txt")) == [(first,), *ONE_EACH[1:]]


def test_a_sign_in_a_columns_name_is_no_delimiter_where_the_rows_have_another(photos):
    put(photos / "captions.csv", "file name\tthe caption, in short\n" + each("{}\t{}, so, yes\n"))
    assert captions(read(photos / "captions.csv")) == [(f"{text}, so, yes",) for text in TEXTS]


@pytest.mark.parametrize("first", ["1. FC wins a match", "- a kite", "* a star"])
def test_rows_that_look_like_entries_of_a_list_swallow_none_before_them(photos, first):
    put(photos / "captions.csv", "".join(f"{first if i == 4 else text};{i}.jpg\n" for i, text in enumerate(TEXTS, 1)))
    assert captions(read(photos / "captions.csv")) == [*ONE_EACH[:3], (first,)]


@pytest.mark.parametrize("form", ["{0},{1}, so\n", "{1}, so,{0}\n"])
def test_one_bare_comma_in_every_caption_of_a_table_without_header_belongs_to_it(photos, form):
    put(photos / "captions.csv", each(form))
    assert captions(read(photos / "captions.csv")) == [(f"{text}, so",) for text in TEXTS]


def test_lists_as_numpy_prints_them_keep_both_kinds_of_quotes(photos):
    texts = ['the dog\'s "big" day', 'a "red" kite', "it's late"]
    frame = pd.DataFrame(
        {"image": ["1.jpg", "2.jpg"], "captions": [str(np.array(texts)), str(np.array(texts[::-1]))]}
    )
    frame.to_csv(photos / "captions.csv", index=False)
    assert captions(read(photos / "captions.csv")) == [tuple(texts), tuple(texts[::-1])]


def test_a_table_without_captions_beside_those_with_some_is_named(photos):
    put(photos / "train.csv", "image,caption\n" + "".join(f"{name},{text}\n" for name, text in PAIRS[:3]))
    put(photos / "test.csv", "image\n4.jpg\n")
    source = read(photos)
    assert captions(source) == ONE_EACH[:3] and source.unnamed == 1
    assert any("test.csv: cannot tell the caption column" in note for note in source.notes)
    assert {record.split for record in source.records} == {None}


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


def test_backslashes_in_python_objects_give_no_warning_of_the_compiler(recwarn):
    assert python_object(r"{'1.jpg': 'a \d dog'}") == {"1.jpg": r"a \d dog"}
    assert python_object(r"{'1.jpg': 'a \d dog") is None
    assert not recwarn.list
