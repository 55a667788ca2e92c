"""Lists of photos beside captions: they become the set's splits or are named, and are never captions."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from support.photos import ONE_EACH, TEXTS, album, captions, encoded, put, read, tar_of

from clipcap.errors import ClipcapError

PARTS = {"train": (1, 2), "val": (3,), "test": (4,)}
SPLITS = ["train", "train", "val", "test"]
TABLE = "image,caption\n" + "".join(f"{i}.jpg,{text}\n" for i, text in enumerate(TEXTS, 1))


def splits(source) -> list[str | None]:
    return [record.split for record in source.records]


def lines(row: str, end: str = "\n"):
    return lambda numbers, split: "".join(row.format(i, split=split) + end for i in numbers)


LISTS = {
    "names": ("{}.txt", lines("{}.jpg")),
    "names without suffix": ("{}.txt", lines("{}")),
    "paths of another machine": ("{}_list.txt", lines("/home/me/set/images/{}.jpg")),
    "Windows": ("{}.txt", lines("images\\{}.JPG", "\r\n")),
    "numbers of classes behind": ("{}.txt", lines("images/{}.jpg 5")),
    "VOC's": ("ImageSets/Main/{}.txt", lines("{}  1")),
    "in a folder of their own": ("splits/{}_ids.txt", lines("{}.jpg")),
    "Flickr8k's": ("Flickr_8k.{}Images.txt", lines("{}.jpg")),
    "with a header": ("{}.csv", lambda numbers, _: "image\n" + lines("{}.jpg")(numbers, "")),
    "with an index": ("{}.csv", lambda n, _: pd.DataFrame({"image": [f"{i}.jpg" for i in n]}).to_csv()),
    "quotes and commas": ("{}.lst", lines('"{}.jpg",')),
    "JSON": ("{}.json", lambda numbers, _: json.dumps([f"{i}.jpg" for i in numbers])),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_for_each_split_is_the_split_of_the_captions_beside_it(tmp_path, kind):
    album(tmp_path / "images")
    put(tmp_path / "captions.csv", TABLE)
    name, written = LISTS[kind]
    for split, numbers in PARTS.items():
        put(tmp_path / name.format(split), written(numbers, split))
    source = read(tmp_path)
    assert captions(source) == ONE_EACH and splits(source) == SPLITS and source.left_out == {}
    assert any(note.startswith("splits from ") for note in source.notes)
    assert splits(read(tmp_path / "captions.csv")) == SPLITS


ONE_LIST = {
    "splits.json": {split: [f"{i}.jpg" for i in numbers] for split, numbers in PARTS.items()},
    "data_split.json": {f"{split}_images": [f"{i}.jpg" for i in numbers] for split, numbers in PARTS.items()},
    "by_photo.json": {f"{i}.jpg": split for split, numbers in PARTS.items() for i in numbers},
    "rows.json": [{"image": f"{i}.jpg", "split": split} for split, numbers in PARTS.items() for i in numbers],
    "split.csv": "image,split\n" + "".join(f"{i}.jpg,{split}\n" for split, n in PARTS.items() for i in n),
    "parts.txt": "".join(f"{i} {split}\n" for split, numbers in PARTS.items() for i in numbers),
}


@pytest.mark.parametrize("name", ONE_LIST)
def test_one_list_that_says_the_split_of_each_photo_is_used(tmp_path, name):
    album(tmp_path / "images")
    put(tmp_path / "captions.csv", TABLE)
    put(tmp_path / name, ONE_LIST[name])
    source = read(tmp_path)
    assert captions(source) == ONE_EACH and splits(source) == SPLITS


@pytest.mark.parametrize("packed", [False, True], ids=["texts beside photos", "photos in a tar"])
def test_lists_split_what_has_no_table_in_the_open(tmp_path, packed):
    if packed:
        tar_of(tmp_path / "images.tar", {f"{i}.jpg": encoded(i) for i in range(1, 5)})
        put(tmp_path / "captions.csv", TABLE)
    else:
        album(tmp_path)
        for i, text in enumerate(TEXTS, 1):
            put(tmp_path / f"{i}.txt", text)
    for split, numbers in PARTS.items():
        put(tmp_path / f"{split}.txt", lines("{}")(numbers, ""))
    source = read(tmp_path)
    assert captions(source) == ONE_EACH and splits(source) == SPLITS
    assert not any("without a photo" in note or "not read" in note for note in source.notes)


def test_lists_split_other_captions_of_flickr_too(tmp_path):
    album(tmp_path / "flickr30k_images")
    put(tmp_path / "results.csv", "image_name| comment_number| comment\n" + TABLE[14:].replace(",", "| 0| "))
    for split, numbers in PARTS.items():
        put(tmp_path / f"{split}.txt", lines("{}")(numbers, ""))
    assert splits(read(tmp_path, "flickr8k")) == splits(read(tmp_path)) == SPLITS


def test_lists_split_tars_cocos_format_and_the_food_set_too(tmp_path):
    members = {f"{i}.{kind}": content for i, text in enumerate(TEXTS, 1) for kind, content in
               (("jpg", encoded(i)), ("txt", text))}  # fmt: skip
    tar_of(tmp_path / "tars" / "a.tar", members)
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, 5)]
    notes = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(TEXTS, 1)]
    put(tmp_path / "coco" / "annotations" / "captions_val2017.json", {"images": images, "annotations": notes})
    album(tmp_path / "coco" / "val2017")
    put(
        tmp_path / "food" / "Captions.csv",
        ",Index,Captions\n" + "".join(f"0,{i},{t}\n" for i, t in enumerate(TEXTS, 1)),
    )
    album(tmp_path / "food" / "images")
    for folder, source in (("tars", "custom"), ("coco", "coco"), ("food", "food")):
        for split, numbers in PARTS.items():
            put(tmp_path / folder / f"{split}.txt", lines("{}")(numbers, ""))
        found = read(tmp_path / folder, source)
        assert captions(found) == ONE_EACH and splits(found) == SPLITS


@pytest.mark.parametrize(
    ("lists", "expected", "remark"),
    [
        ({"train": (1, 2)}, ["train", "train", "test", "test"], "2 images in none of these lists: taken for test"),
        ({"val": (4,)}, ["train"] * 3 + ["val"], "3 images in none of these lists: taken for train"),
        ({"train": (1, 2), "val": (3, 9)}, ["train", "train", "val", None], "1 image in none of these lists: in no"),
        ({"train": (1, 2), "val": (3, 4, 9)}, ["train", "train", "val", "val"], "1 name in these lists of no photo"),
        ({"train": (1, 2), "val": (2, 3, 4)}, ["train", "val", "val", "val"], "1 photo in the lists of two splits"),
        ({"train": (1, 2, 3, 4)}, [None] * 4, "train.txt: not used, as all photos are in one split by it"),
        ({"images": (1, 2, 3, 4)}, [None] * 4, "images.txt lists photos, without captions: not used"),
    ],
)
def test_what_lists_leave_open_or_say_twice_is_one_line(tmp_path, lists, expected, remark):
    album(tmp_path / "images")
    put(tmp_path / "captions.csv", TABLE)
    for name, numbers in lists.items():
        put(tmp_path / f"{name}.txt", lines("{}.jpg")(numbers, ""))
    source = read(tmp_path)
    assert captions(source) == ONE_EACH and splits(source) == expected
    assert sum(remark in note for note in source.notes) == 1


def test_splits_of_the_captions_themselves_come_before_those_of_lists(tmp_path):
    album(tmp_path / "images")
    rows = TABLE.splitlines()
    put(
        tmp_path / "captions.csv",
        "\n".join([f"{rows[0]},split", *(f"{row},train" for row in rows[1:4]), rows[4] + ",val"]),
    )
    put(tmp_path / "val.txt", "1.jpg\n2.jpg\n")
    source = read(tmp_path)
    assert splits(source) == ["train"] * 3 + ["val"]
    assert "val.txt: not used, as the captions have splits of their own" in source.notes


@pytest.mark.parametrize("name", ["train.txt", "split.csv", "by_photo.json", "labels.txt"])
def test_a_list_alone_is_no_table_of_captions(tmp_path, name):
    album(tmp_path / "images")
    put(tmp_path / name, {"train.txt": "1.jpg\n2.jpg\n3.jpg\n", "labels.txt": TABLE_OF_CLASSES, **ONE_LIST}[name])
    with pytest.raises(ClipcapError, match=r"no image with a caption|cannot tell the caption column"):
        read(tmp_path)


@pytest.mark.parametrize("cell", ["0", "12", "train"])
def test_a_number_or_one_word_in_a_column_called_caption_is_a_caption(tmp_path, cell):
    album(tmp_path / "images", count=1)
    put(tmp_path / "captions.csv", f"image,caption\n1.jpg,{cell}\n")
    assert captions(read(tmp_path)) == [(cell,)]


TABLE_OF_CLASSES = "".join(f"images/{i}.jpg {i + 3}\n" for i in range(1, 5))


@pytest.mark.parametrize("name", ["classes.txt", "urls.txt", "notes.txt", "stats.json", "boxes.json"])
def test_other_files_beside_captions_are_no_lists_of_photos(tmp_path, name):
    album(tmp_path / "images")
    put(tmp_path / "captions.csv", TABLE)
    content = {
        "classes.txt": "cat\ndog\n",
        "urls.txt": "https://example.org/1.jpg\nhttps://example.org/2.jpg\n",
        "notes.txt": "1.jpg was taken in May\n2.jpg was not\n",
        "stats.json": {"train": 3, "val": 1},
        "boxes.json": {"images": [{"file_name": "1.jpg", "license": "CC0"}], "annotations": []},
    }
    put(tmp_path / name, content[name])
    source = read(tmp_path)
    assert captions(source) == ONE_EACH and not any("list" in note for note in source.notes)


@pytest.mark.parametrize("place", ["{}/{}.jpg", "images/{}/{}.jpg"])
@pytest.mark.parametrize("named", ["as a path", "by its name"])
def test_folders_of_photos_that_are_called_by_splits_are_the_splits_of_one_table(tmp_path, place, named):
    rows = ["file_name,text\n"]
    for i, (text, word) in enumerate(zip(TEXTS, ("train", "train", "validation", "test")), 1):
        path = place.format(word, i)
        put(tmp_path / path, encoded(i))
        rows.append(f"{path if named == 'as a path' else f'{i}.jpg'},{text}\n")
    put(tmp_path / "metadata.csv", "".join(rows))
    source = read(tmp_path)
    assert sorted(zip(captions(source), splits(source))) == sorted(zip(ONE_EACH, SPLITS))
    assert any(note.startswith("splits from the folders of the photos: ") for note in source.notes)


def test_other_tables_of_captions_beside_the_one_that_is_read_are_named(tmp_path):
    album(tmp_path / "images")
    for name in ("captions.csv", "captions_old.csv"):
        put(tmp_path / name, TABLE)
    source = read(tmp_path)
    assert captions(source) == ONE_EACH
    assert "other tables of captions, not read: captions_old.csv (--captions FILE)" in source.notes
