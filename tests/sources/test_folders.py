"""Folders and tars as downloaders, taggers, Kaggle and the hub leave them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.photos import ONE_EACH, TEXTS, album, captions, encoded, put, read, tar_of

from clipcap.errors import ClipcapError


def splits(source) -> Counter:
    return Counter(record.split for record in source.records)


BESIDE = {
    ".txt": ("{}.txt", str),
    ".TXT": ("{}.TXT", str),
    ".caption": ("{}.caption", str),
    ".cap": ("{}.cap", str),
    ".tags": ("{}.tags", str),
    ".json": ("{}.json", lambda text: json.dumps({"caption": text, "width": 40})),
    ".json with a list": ("{}.json", lambda text: json.dumps([text])),
    ".json of a downloader": ("{}.jpg.json", lambda text: json.dumps({"title": "", "description": text, "id": 7})),
    ".json of Google's archive": (
        "{}.jpg.supplemental-metadata.json",
        lambda text: json.dumps({"description": text}),
    ),
    ".json of gallery-dl": ("{}.jpg.json", lambda text: json.dumps({"category": "x", "content": text})),
    "a word behind": ("{}_caption.txt", str),
    "a word before": ("caption_{}.txt", str),
    "behind the name": ("{}.jpg.txt", str),
    "UTF-16": ("{}.txt", lambda text: text.encode("utf-16")),
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("place", ["", "10_thing", "a/b"])
def test_a_caption_beside_its_photo_is_found_whatever_it_is_called(tmp_path, kind, place):
    album(tmp_path / place)
    name, written = BESIDE[kind]
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / place / name.format(i), written(text))
    assert captions(read(tmp_path)) == ONE_EACH


def test_unicode_forms_and_slashes_of_windows_make_no_difference_to_a_caption_beside_its_photo(tmp_path):
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"fotos\\fl\u00fcgel{i}.jpg", encoded(i))
        put(tmp_path / f"texte\\flu\u0308gel{i}.txt", text)
    assert captions(read(tmp_path)) == ONE_EACH


def test_words_for_photo_and_caption_in_their_names_make_no_difference(tmp_path):
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / "images" / f"image_{i}.jpg", encoded(i))
        put(tmp_path / "captions" / f"caption_{i}.txt", text)
    assert captions(read(tmp_path)) == ONE_EACH


def test_boxes_of_a_detector_and_the_name_of_the_photo_are_no_captions(tmp_path):
    album(tmp_path)
    put(tmp_path / "1.txt", "0 0.5 0.5 0.1 0.2\n12 0.1 .3 1 0.02\n")
    put(tmp_path / "2.jpg.json", {"title": "2.jpg", "description": ""})
    put(tmp_path / "3.txt", "3 dogs on 2 chairs")
    put(tmp_path / "4.txt", "12")
    source = read(tmp_path)
    assert [record.image_id for record in source.records] == ["3.jpg", "4.jpg"]
    assert "1 photo left out: caption file unusable: of numbers, as detectors are trained on" in source.notes
    assert source.seen == 4


@pytest.mark.parametrize("archive", ["images.tar", "captions.tar"])
def test_a_table_beside_a_tar_names_its_members(tmp_path, archive):
    tar_of(tmp_path / archive, {f"photos/{i}.jpg": encoded(i) for i in range(1, 5)})
    put(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{i}.jpg,{t}\n" for i, t in enumerate(TEXTS, 1)))
    assert captions(read(tmp_path)) == ONE_EACH


def test_photos_in_an_archive_and_captions_in_a_spreadsheet_are_named_with_what_to_do(tmp_path):
    put(tmp_path / "a" / "images.zip", b"PK")
    put(tmp_path / "a" / "captions.csv", "image,caption\n1.jpg,a red kite\n")
    assert "no photos here; unpack or convert first: images.zip" in read(tmp_path / "a").notes
    album(tmp_path / "b")
    put(tmp_path / "b" / "captions.xlsx", b"PK")
    with pytest.raises(ClipcapError, match=r"captions\.xlsx is a spreadsheet: save it as CSV"):
        read(tmp_path / "b")


def test_a_table_of_any_name_that_names_photos_is_found(tmp_path):
    album(tmp_path / "images")
    put(tmp_path / "Flickr8k.arabic.full.txt", "".join(f"{i}.jpg#0\t{t}\n" for i, t in enumerate(TEXTS, 1)))
    put(tmp_path / "notes.txt", "taken in May\n")
    assert captions(read(tmp_path)) == ONE_EACH


def test_capitals_of_both_suffixes_make_no_difference(tmp_path):
    album(tmp_path, ".JPG")
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"{i}.Caption", text)
    assert captions(read(tmp_path)) == ONE_EACH


@pytest.mark.parametrize("texts", ["captions/{}.txt", "labels/{}.caption", "Sentences/{}.txt"])
def test_captions_in_a_folder_of_their_own_are_found(tmp_path, texts):
    album(tmp_path / "images")
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / texts.format(i), text)
    source = read(tmp_path)
    assert captions(source) == ONE_EACH
    assert "4 photos found with the caption in another folder" in source.notes


def test_the_captioners_file_comes_before_the_taggers(tmp_path):
    album(tmp_path)
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"{i}.caption", text)
        put(tmp_path / f"{i}.txt", "1girl, solo")
    source = read(tmp_path)
    assert captions(source) == ONE_EACH
    assert any(note.endswith("not read: .txt 4") for note in source.notes)


def test_a_caption_file_that_cannot_be_read_costs_its_own_photo_alone(tmp_path):
    album(tmp_path)
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"{i}.txt", "crêpe".encode("cp1252") if i == 2 else text)
    source = read(tmp_path)
    assert captions(source) == [ONE_EACH[0], *ONE_EACH[2:]]
    assert source.left_out == {"with a caption file that cannot be read": 1}
    assert any("2.txt: line 1, byte 3" in note for note in source.notes)


def test_several_photos_of_one_post_share_its_text(tmp_path):
    album(tmp_path, count=2)
    for i in (1, 2):
        (tmp_path / f"{i}.jpg").rename(tmp_path / f"2020-01-01_UTC_{i}.jpg")
    put(tmp_path / "2020-01-01_UTC.txt", TEXTS[0])
    assert captions(read(tmp_path)) == [ONE_EACH[0]] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset-metadata.json", {"title": "t", "licenses": [{"name": "CC0"}]}),
        ("dataset_infos.json", {"default": {"features": {}}}),
        ("state.json", {"_fingerprint": "x"}),
        ("README.md", "# a set"),
        ("notes.json", {"made": "Monday"}),
        (".gitattributes", "*.jpg filter=lfs"),
        ("00000_stats.json", {"count": 4}),
    ],
)
def test_what_downloaders_leave_at_the_top_is_no_table_of_captions(tmp_path, name, content):
    album(tmp_path)
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"{i}.txt", text)
    put(tmp_path / name, content)
    assert captions(read(tmp_path)) == ONE_EACH


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("words", [("train", "test"), ("Training", "validation")])
def test_a_folder_for_each_split_with_a_table_in_each(tmp_path, kind, words):
    for word, numbers in zip(words, ((1, 2, 3), (4,))):
        album(tmp_path / word, count=len(numbers), start=numbers[0])
        rows = [{"file_name": f"{i}.jpg", "text": TEXTS[i - 1]} for i in numbers]
        path = tmp_path / word / f"metadata.{kind}"
        if kind == "csv":
            put(path, "file_name,text\n" + "".join(f"{r['file_name']},{r['text']}\n" for r in rows))
        elif kind == "jsonl":
            put(path, "\n".join(map(json.dumps, rows)))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
    source = read(tmp_path)
    assert sorted(captions(source)) == sorted(ONE_EACH)
    assert splits(source) == {"train": 3, {"test": "test", "validation": "val"}[words[1]]: 1}


@pytest.mark.parametrize("place", ["{}/{}", "images/{}/{}"])
def test_a_folder_for_each_split_with_texts_beside_the_photos(tmp_path, place):
    for i, text in enumerate(TEXTS, 1):
        word = "val" if i == 4 else "train"
        album(tmp_path / place.format(word, ""), count=1, start=i)
        put(tmp_path / place.format(word, f"{i}.txt"), text)
    source = read(tmp_path)
    assert splits(source) == {"train": 3, "val": 1} and sorted(captions(source)) == sorted(ONE_EACH)


def test_a_table_for_each_split_beside_one_folder_of_photos(tmp_path):
    album(tmp_path / "images")
    for word, numbers in (("train", (1, 2)), ("validation", (3,)), ("test", (4,))):
        lines = "".join(f"{i}.jpg,{TEXTS[i - 1]}\n" for i in numbers)
        put(tmp_path / f"{word}.csv", f"image,caption\n{lines}")
    source = read(tmp_path)
    assert splits(source) == {"train": 2, "val": 1, "test": 1} and source.unnamed == 0


def test_shards_of_the_hub_are_one_set_with_its_splits(tmp_path):
    for name, numbers in (
        ("train-00000-of-00002", (0, 1)),
        ("train-00001-of-00002", (2,)),
        ("test-00000-of-00001", (3,)),
    ):
        rows = [{"image": {"bytes": encoded(i), "path": None}, "text": TEXTS[i]} for i in numbers]
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet")
    put(tmp_path / "README.md", "# a set")
    source = read(tmp_path)
    assert sorted(captions(source)) == sorted(ONE_EACH) and splits(source) == {"train": 3, "test": 1}


def test_archives_that_unpack_to_one_folder_are_looked_into(tmp_path):
    inner = tmp_path / "flickr30k_images"
    album(inner / "flickr30k_images")
    rows = "".join(f"{i}.jpg| 0| {text} .\n" for i, text in enumerate(TEXTS, 1))
    put(inner / "results.csv", f"image_name| comment_number| comment\n{rows}")
    assert captions(read(tmp_path)) == [(f"{text} .",) for text in TEXTS]


def test_a_folder_of_archives_says_what_to_do(tmp_path):
    put(tmp_path / "photos.zip", b"PK\x03\x04")
    with pytest.raises(ClipcapError, match=r"no photos, tables or tars here; unpack or convert first: photos\.zip"):
        read(tmp_path)


def test_img2datasets_folder_of_files_is_read(tmp_path):
    for i, text in enumerate(TEXTS):
        put(tmp_path / "00000" / f"{i:09d}.jpg", encoded(i))
        put(tmp_path / "00000" / f"{i:09d}.txt", text)
        put(tmp_path / "00000" / f"{i:09d}.json", {"caption": text, "status": "success", "key": f"{i:09d}"})
    pq.write_table(pa.table({"url": ["x"] * 4, "caption": TEXTS, "key": list("abcd")}), tmp_path / "00000.parquet")
    put(tmp_path / "00000_stats.json", {"count": 4})
    assert captions(read(tmp_path)) == ONE_EACH


MEMBERS = {
    "webdataset": ("{}.jpg", "{}.txt", str),
    "capitals": ("{}.JPG", "{}.TXT", str),
    "kohya": ("{}.png", "{}.caption", str),
    "several dots": ("photo.v{}.jpg", "photo.v{}.txt", str),
    "keys up to the first dot": ("{}.image.jpg", "{}.caption.txt", str),
    "a plain folder": ("./set/images/{}.jpg", "./set/captions/{}.txt", str),
    "JSON": ("a/{}.jpg", "a/{}.json", lambda text: json.dumps({"caption": text})),
    "behind the name": ("{}.jpg", "{}.jpg.txt", str),
    "no suffix": ("photo{}", "photo{}.txt", str),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_tars_are_read_whatever_their_members_are_called(tmp_path, kind):
    photo, text_name, written = MEMBERS[kind]
    members = {}
    for i, text in enumerate(TEXTS, 1):
        members[photo.format(i)] = encoded(i)
        members[text_name.format(i)] = written(text)
        members[f"._{i}.jpg"] = b"of macOS"
    assert captions(read(tar_of(tmp_path / "a.tar", members))) == ONE_EACH


@pytest.mark.parametrize("table", ["metadata.jsonl", "train/captions.csv", "captions.json"])
def test_a_table_in_a_tar_names_its_members(tmp_path, table):
    folder = str(Path(table).parent)
    members = {f"{folder}/images/{i}.JPG".removeprefix("./"): encoded(i) for i in range(1, 5)}
    rows = [{"file_name": f"images/{i}.jpg", "text": text} for i, text in enumerate(TEXTS, 1)]
    written = {
        ".jsonl": "\n".join(map(json.dumps, rows)),
        ".json": json.dumps(rows),
        ".csv": "file_name,text\n" + "".join(f"{r['file_name']},{r['text']}\n" for r in rows),
    }
    source = read(tar_of(tmp_path / "a.tar", {**members, table: written[Path(table).suffix]}))
    assert captions(source) == ONE_EACH
    assert "4 names matched without regard to case" in source.notes


def test_tars_called_by_their_split_give_splits_and_second_members_of_a_name_are_counted(tmp_path):
    for word, i in (("train", 1), ("train", 2), ("val", 3)):
        tar_of(tmp_path / f"{word}-{i:05d}.tar", {"0.jpg": encoded(i), "0.txt": TEXTS[i]})
    assert splits(read(tmp_path)) == {"train": 2, "val": 1}


def test_img2datasets_tars_are_read_beside_their_tables(tmp_path):
    members = {}
    for i, text in enumerate(TEXTS):
        members |= {f"{i:09d}.jpg": encoded(i), f"{i:09d}.txt": text, f"{i:09d}.json": json.dumps({"caption": text})}
    tar_of(tmp_path / "00000.tar", members)
    pq.write_table(pa.table({"url": ["x"] * 4, "caption": TEXTS, "key": list("abcd")}), tmp_path / "00000.parquet")
    put(tmp_path / "00000_stats.json", {"count": 4})
    assert captions(read(tmp_path)) == ONE_EACH


def test_photos_without_a_text_and_texts_without_a_photo_and_other_files_are_all_counted(tmp_path):
    album(tmp_path)
    put(tmp_path / "1.txt", TEXTS[0])
    put(tmp_path / "2.txt", TEXTS[1])
    put(tmp_path / "9.txt", "nobody")
    put(tmp_path / "film.mp4", b"....")
    source = read(tmp_path)
    assert len(source.records) == 2 and source.left_out == {"without a caption": 2} and source.seen == 4
    assert "1 caption file without a photo (.txt 1)" in source.notes
    assert "other files, not read: .mp4 1" in source.notes


def test_photos_that_no_row_names_are_counted(tmp_path):
    album(tmp_path / "images")
    source = read(put(tmp_path / "caps.csv", f"image,caption\n1.jpg,{TEXTS[0]}\n"))
    assert source.unnamed == 3 and "3 photos left out: named in no row" in source.notes


def test_a_text_for_each_caption_of_a_photo(tmp_path):
    for sign in "_.":
        folder = album(tmp_path / ("dots" if sign == "." else "lines"))
        for i, text in enumerate(TEXTS, 1):
            for number in range(2):
                put(folder / f"{i}{sign}{number}.txt", f"{text} {number}")
        assert captions(read(folder)) == [(f"{text} 0", f"{text} 1") for text in TEXTS]


@pytest.mark.parametrize("name", ["urls.csv", "selected_tags.csv", "CREDITS.md", "sources.txt"])
def test_a_table_of_something_else_beside_captioned_photos_is_left_alone(tmp_path, name):
    album(tmp_path)
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / f"{i}.txt", text)
    rows = {"selected_tags.csv": "tag_id,name\n1,dog\n", "CREDITS.md": "- 1.jpg: by somebody of ours\n"}
    put(tmp_path / name, rows.get(name, "https://example.org/1.jpg\nhttps://example.org/2.jpg\n"))
    assert captions(read(tmp_path)) == ONE_EACH


def test_texts_beside_photos_that_a_table_replaces_are_counted(tmp_path):
    album(tmp_path)
    for i in range(1, 5):
        put(tmp_path / f"{i}.txt", "of a tagger")
    put(
        tmp_path / "captions.csv", "image,caption\n" + "".join(f"{i}.jpg,{text}\n" for i, text in enumerate(TEXTS, 1))
    )
    source = read(tmp_path)
    assert captions(source) == ONE_EACH
    assert "4 caption files beside a photo not read: a table has captions" in source.notes


@pytest.mark.parametrize("junk", ["@eaDir/1.jpg/thumb.jpg", "__MACOSX/album/2.jpg", "$RECYCLE.BIN/3.jpg"])
def test_folders_in_which_systems_keep_their_own_files_are_none_of_the_set(tmp_path, junk):
    album(tmp_path / "album")
    for i, text in enumerate(TEXTS, 1):
        put(tmp_path / "album" / f"{i}.txt", text)
    put(tmp_path / junk, encoded(1))
    source = read(tmp_path)
    assert captions(source) == ONE_EACH and source.left_out == {}


def test_cocos_whole_folder_of_annotations_is_read_whatever_the_ids(tmp_path):
    for split, texts in (("train", TEXTS[:3]), ("val", TEXTS[3:])):
        album(tmp_path / split, count=len(texts))
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, len(texts) + 1)]
        notes = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(texts, 1)]
        boxes = [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]
        for kind, listed in (("captions", notes), ("instances", boxes), ("keypoints", [])):
            put(tmp_path / "annotations" / f"{kind}_{split}.json", {"images": images, "annotations": listed})
    source = read(tmp_path)
    assert splits(source) == {"train": 3, "val": 1} and sorted(captions(source)) == sorted(ONE_EACH)
