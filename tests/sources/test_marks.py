"""Columns of marks: the split of each row's image, and captions that are not to be used."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest
from support.photos import TEXTS, album, captions, put, read

from clipcap.errors import ClipcapError

SPLITS = ("train", "train", "val", "test")


@pytest.fixture
def photos(tmp_path):
    album(tmp_path / "images")
    return tmp_path


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame({"image": [f"{i}.jpg" for i in range(1, 5)], "caption": TEXTS} | columns)


def splits(source) -> list[str | None]:
    return [record.split for record in source.records]


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        (1, 0),
        (True, False),
        ("true", "false"),
        ("yes", "no"),
        ("x", ""),
        ("1.0", "0.0"),
        ("Y", "N"),
        ("WAHR", "FALSCH"),
    ],
)
@pytest.mark.parametrize("name", ["{}", "is_{}", "in_{}", "split_{}", "{}_set", "{}_mask", "Is {}"])
def test_a_column_of_yes_and_no_for_each_split_chooses_its_rows(photos, yes, no, name):
    flags = {
        name.format(split): [yes if split == own else no for own in SPLITS] for split in ("train", "val", "test")
    }
    frame(**flags).to_csv(photos / "caps.csv", index=False)
    source = read(photos / "caps.csv")
    assert splits(source) == list(SPLITS) and captions(source) == [(text,) for text in TEXTS]
    assert any(", splits from " in note for note in source.notes)


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("is_train", (1, 1, 0, 0), ["train", "train", "test", "test"]),
        ("is_val", (0, 0, 0, 1), ["train", "train", "train", "val"]),
        ("test", (0, 0, 1, 1), ["train", "train", "test", "test"]),
        ("train", (0, 1, 0, 1), [None] * 4),  # a railway's, as VOC has it
        ("val", ("", "", "", ""), [None] * 4),
    ],
)
def test_one_column_of_yes_and_no_tells_its_split_from_the_rest(photos, name, flags, expected):
    frame(**{name: flags}).to_csv(photos / "caps.csv", index=False)
    assert splits(read(photos / "caps.csv")) == expected


@pytest.mark.parametrize(
    "write", [pd.DataFrame.to_parquet, lambda table, path: table.to_json(path, orient="records")]
)
def test_columns_of_splits_are_read_from_parquet_and_json(photos, write):
    path = photos / ("caps.parquet" if write is pd.DataFrame.to_parquet else "caps.json")
    write(frame(train=[True, True, False, False], test=[False, False, True, True]), path)
    assert splits(read(path)) == ["train", "train", "test", "test"]


def test_rows_in_no_split_have_none_and_rows_in_two_are_counted(photos):
    frame(train=[1, 1, 0, 0], test=[0, 1, 1, 0]).to_csv(photos / "caps.csv", index=False)
    source = read(photos / "caps.csv")
    assert splits(source) == ["train", "test", None] and source.rows_left_out == 1
    assert any("in several splits: test, train" in note for note in source.notes)


@pytest.mark.parametrize("columns", [["image", "train"], ["image", "train", "test"], ["image", "outdoor"]])
def test_yes_and_no_are_no_captions(photos, columns):
    frame(train=[1, 0, 1, 0], test=[0, 1, 0, 1], outdoor=[0, 1, 1, 1])[columns].to_csv(
        photos / "caps.csv", index=False
    )
    with pytest.raises(ClipcapError, match="cannot tell the caption column"):
        read(photos / "caps.csv")


@pytest.mark.parametrize("name", ["Split", "usage", "data type", "fold", "stage"])
@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("Training", "dev", "testing"), ("train2014", "val2014", "test-dev")]
)
def test_a_column_that_holds_words_for_splits_is_one_whatever_its_name(photos, name, words):
    word = dict(zip(("train", "val", "test"), words))
    frame(**{name: [word[split] for split in SPLITS]}).to_csv(photos / "caps.csv", index=False)
    assert splits(read(photos / "caps.csv")) == list(SPLITS)


def test_splits_of_images_in_cocos_format_are_used(photos):
    images = [{"id": float(i), "file_name": f"{i}.jpg", "split": SPLITS[i - 1]} for i in range(1, 5)]
    notes = [{"id": i, "image_id": str(i), "caption": text} for i, text in enumerate(TEXTS, 1)]
    assert splits(read(put(photos / "caps.json", {"images": images, "annotations": notes}))) == list(SPLITS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("answer", ("accept", "reject")),
        ("AssignmentStatus", ("Approved", "Rejected")),
        ("review", ("accepted", "skip")),
    ],
)
def test_captions_that_a_reviewer_has_rejected_are_left_out_and_counted(photos, name, words):
    accepted, rejected = words
    frame(**{name: [accepted, rejected, accepted, accepted]}).to_csv(photos / "caps.csv", index=False)
    source = read(photos / "caps.csv")
    assert captions(source) == [(TEXTS[0],), (TEXTS[2],), (TEXTS[3],)]
    assert source.left_out == {"without a caption": 1}
    assert any(f"marked as unusable ({name} 1)" in note for note in source.notes)


def test_one_photo_under_several_names_is_one_image(photos):
    rows = [("1.jpg", "a kite", "train"), ("images/1.jpg", "a red kite", "train"), ("2.JPG", "two cups", "val")]
    pd.DataFrame(rows, columns=["image", "caption", "split"]).to_csv(photos / "caps.csv", index=False)
    source = read(photos / "caps.csv")
    assert captions(source) == [("a kite", "a red kite"), ("two cups",)]
    assert "1 name of a photo that has another name here too: joined" in source.notes
    rows[1] = ("images/1.jpg", "a red kite", "val")
    pd.DataFrame(rows, columns=["image", "caption", "split"]).to_csv(photos / "caps.csv", index=False)
    source = read(photos / "caps.csv")
    assert Counter(splits(source)) == {"train": 1, "val": 2}
    assert "1 photo in two splits, under different names" in source.notes
