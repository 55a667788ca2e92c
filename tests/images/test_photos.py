"""One rule finds the photo that a name means, in every source, and says what it did."""

from __future__ import annotations

import json
import unicodedata

import pytest
from support.photos import album, draw, put, read

from clipcap.errors import ClipcapError
from clipcap.images.photos import PhotoLinkError, PhotoNameError, Photos

WAYS = {
    "Images/1.JPG": "without regard to case",
    "images\\1.jpg": "with backslashes read as slashes",
    "C:\\Users\\me\\set\\images\\1.jpg": "with backslashes read as slashes and by the end of their path",
    "/content/drive/MyDrive/images/1.jpg": "by the end of their path",
    "/kaggle/input/x/1.jpg": "by the end of their path",
    "data/set/images/1.jpg": "by the end of their path",
    "../images/1.jpg": None,
    "file:///data/images/1.jpg": "by the end of their path",
    "1.jpeg": "with another suffix",
    "1.png": "with another suffix",
    "images/%31.jpg": "after percent-decoding",
    "0001.jpg": "by their number",
    "https://example.org/a/1.jpg?size=big": "by the end of their path",
    "1a2b3c4d-1.jpg": "without the signs before their name",
    "- 1.jpg": "without the signs before their name",
    "2. 1.jpg": "without the signs before their name",
    "\u202a1.jpg": "",
    "1.jpg#3": "",
    '"1.jpg"': "",
}


@pytest.mark.parametrize("name", WAYS)
def test_a_name_that_a_person_would_call_the_same_finds_its_photo(tmp_path, name):
    album(tmp_path / "images", count=3)
    photos = Photos([tmp_path, tmp_path / "images"])
    assert photos.find(name) == tmp_path / "images" / "1.jpg"
    if WAYS[name]:
        assert photos.notes() == [f"1 name matched {WAYS[name]}"]


def test_what_is_there_as_it_stands_takes_no_liberty(tmp_path):
    draw(tmp_path / "a.jpg", tmp_path / "A.jpg", tmp_path / "A.png", tmp_path / "sub" / "a.jpg")
    photos = Photos([tmp_path])
    for name in ("a.jpg", "A.jpg", "A.png", "sub/a.jpg", "A"):
        assert photos.find(name).relative_to(tmp_path).as_posix().startswith(name)
    assert photos.notes() == []


@pytest.mark.parametrize(
    "name", ["my photo 1.jpg", "my+photo+1.jpg", "my-photo-1.jpg", "My_Photo 1.png", "my:photo?1.jpg"]
)
def test_signs_between_words_make_no_difference_where_one_photo_fits(tmp_path, name):
    draw(tmp_path / "my_photo_1.jpg", tmp_path / "my_photo_2.jpg", tmp_path / "my_photo_11.jpg")
    photos = Photos([tmp_path])
    assert photos.find(name) == tmp_path / "my_photo_1.jpg"
    assert "with other signs between their words" in photos.notes()[0]
    draw(tmp_path / "my photo-1.jpg")
    assert photos.find("my+photo+3.jpg") == tmp_path / "my+photo+3.jpg"
    assert not Photos([tmp_path]).knows("my+photo+1.jpg")  # two would fit


def test_the_end_of_a_link_is_a_photo_only_where_it_is_more_than_a_number(tmp_path):
    draw(tmp_path / "7.jpg", tmp_path / "000000008.jpg", tmp_path / "a1b2c3.jpg", tmp_path / "9.jpg")
    photos = Photos([tmp_path])
    for link in ("https://example.org/7", "https://example.org/8?id=3", "https://example.org/view.php"):
        with pytest.raises(PhotoLinkError):
            photos.find(link)
    assert photos.find("https://example.org/a1b2c3").name == "a1b2c3.jpg"
    assert photos.find("https://example.org/9.jpg").name == "9.jpg"


def test_looking_whether_photos_are_known_takes_none_from_a_later_name(tmp_path):
    draw(tmp_path / "train_images" / "1.jpg")
    photos = Photos([tmp_path])
    assert photos.knows("1")
    assert photos.find("train/1.jpg") == tmp_path / "train_images" / "1.jpg"


def test_unicode_forms_make_no_difference(tmp_path):
    stored, written = (unicodedata.normalize(form, "crêpe.jpg") for form in ("NFD", "NFC"))
    draw(tmp_path / stored)
    photos = Photos([tmp_path])
    assert photos.find(written) == tmp_path / stored
    assert photos.notes() == ["1 name matched after Unicode normalisation"]


def test_the_folders_of_a_name_decide_between_photos_of_one_name(tmp_path):
    draw(tmp_path / "cats" / "1.jpg", tmp_path / "dogs" / "1.jpg")
    photos = Photos([tmp_path])
    assert photos.find("C:\\set\\dogs\\1.JPG") == tmp_path / "dogs" / "1.jpg"
    assert not photos.find("1.JPG").exists()
    assert photos.notes()[-1] == "1 name fit several photos: write their folder too"


def test_a_photo_of_another_folder_is_not_taken_for_one_that_is_missing(tmp_path):
    draw(tmp_path / "dogs" / "1.jpg", tmp_path / "birds" / "2.jpg")
    photos = Photos([tmp_path])
    assert not photos.find("cats/1.jpg").exists()
    flat = album(tmp_path / "flat", count=1)
    photos = Photos([flat])
    assert photos.find("cats/1.jpg").exists() and not photos.find("dogs/1.jpg").exists()


def test_numbers_are_compared_whole(tmp_path):
    draw(tmp_path / "inf1.jpg", tmp_path / "COCO_val2014_000000000042.jpg", tmp_path / "007.jpg")
    photos = Photos([tmp_path])
    assert not photos.find("1").exists()
    assert photos.find("42").name == "COCO_val2014_000000000042.jpg"
    assert photos.find("7").name == "007.jpg"


@pytest.mark.parametrize("name", ["", "../x.jpg", "/etc/x.jpg", "C:\\x.jpg", "a\0.jpg", "a/../../x.jpg"])
def test_names_that_leave_the_folder_are_refused_where_no_photo_is_meant(tmp_path, name):
    album(tmp_path, count=1)
    with pytest.raises(PhotoNameError, match="not a file name inside"):
        Photos([tmp_path]).find(name)


def test_a_link_without_its_photo_is_named_a_link(tmp_path):
    for name in ("https://example.org/9.jpg", "//cdn.example.org/9.jpg", "s3://bucket/9.jpg"):
        with pytest.raises(PhotoLinkError, match="is a link"):
            Photos([tmp_path], anywhere=True).find(name)


def sources(folder, names):
    """The same names in a file of each source."""
    food = "".join(f"{i},{name},text {i}\n" for i, name in enumerate(names))
    put(folder / "food" / "Captions.csv", ",Index,Captions\n" + food)
    put(folder / "flickr8k" / "captions.txt", "image,caption\n" + "".join(f"{n},text here\n" for n in names))
    images = [{"filename": name, "split": "train", "sentences": [{"raw": "text here"}]} for name in names]
    put(folder / "coco" / "dataset_coco.json", {"images": images})
    put(folder / "custom" / "caps.jsonl", "\n".join(json.dumps({"image": n, "text": "text here"}) for n in names))
    return ("food", "flickr8k", "coco", "custom")


def test_every_source_finds_photos_by_the_same_rule_and_reports_it(tmp_path):
    names = ["IMAGES\\1.JPG", "/home/me/images/2.jpg", "3.jpeg"]
    for source in sources(tmp_path, names):
        album(tmp_path / source / "images", count=3)
        found = read(tmp_path / source, source)
        assert sorted(record.image.path.name for record in found.records) == ["1.jpg", "2.jpg", "3.jpg"]
        assert "1 name matched with backslashes read as slashes and without regard to case" in found.notes
        assert "1 name matched by the end of their path" in found.notes
        assert "1 name matched with another suffix" in found.notes


def test_every_source_counts_names_that_can_be_no_files(tmp_path):
    for source in sources(tmp_path, ["1.jpg", "../../secret.jpg", "2.jpg"]):
        album(tmp_path / source / "images", count=2)
        found = read(tmp_path / source, source)
        if source != "custom":  # whose names may lead anywhere
            assert len(found.records) == 2
            assert any(note.startswith("1 row left out: ") and "not a file name" in note for note in found.notes)


def test_a_set_without_any_photo_named_says_so(tmp_path):
    with pytest.raises(ClipcapError, match=r"no image with a caption; .*1 row left out"):
        read(put(tmp_path / "caps.csv", "image,caption\nhttps://example.org/1.jpg,text\n"))
