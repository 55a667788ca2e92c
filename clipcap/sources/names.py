"""The names that people give to columns, folders and files: of images, captions, splits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from clipcap.runtime.text import shown
from clipcap.sources.faults import RowError

# Compared without capitals, blanks, dots, hyphens, underscores and angle brackets; the first match is the column.
IMAGE_NAMES = (
    "image file filename imagepath imagefile imagefilename imagename filepath path imagefilepath imagefilepath img "
    "imgpath imgname imgfile imgfilename images photo photopath photoname photofile picture pic jpg png webp jpeg "
    "imagelink imageurl imageurls url urls link imgurl photourl fname relpath relativepath imagelocalpath "
    "localpath localfile localfilename cocourl flickrurl"
).split()
ID_NAMES = ("imageid", "imgid", "photoid", "key", "id", "index", "uid", "uniqid", "name", "asset", "assetid")
CAPTION_NAMES = (
    "caption captions text texts captiontext captionstr captiontxt description descriptions sentence sentences title "
    "titles raw comment comments txt imagecaption imagedescription imgcaption photodescription alttext alt "
    "shortcaption longcaption detailedcaption moredetailedcaption generatedcaption blipcaption "
    "recaption summary utterance annotation annotations "
    "reference references prediction predicted predict generatedtext hypothesis paragraph phrase phrases "
    "findings report response output "
    "answer completion suffix target referencestrs content "
    "conversations conversation messages dialog contents fileattributes regions prompt label tags tag"
).split()
TAGS = ("label", "tags", "tag")  # the last of them, which are seldom sentences
CONVERSATIONS = ("conversations", "conversation", "messages", "dialog", "contents")
# Folders of photos beside a table of captions.
PHOTO_FOLDERS = (
    "images image imgs img photos photo pictures pics pic dataset data gifs files jpg jpeg train2014 val2014 "
    "train2017 val2017 flicker8k_dataset flickr8k_dataset flickr30k_images flickr30k-images"
).split()
FOLDER_NAMES = (
    "folder",
    "dir",
    "directory",
    "subfolder",
    "subdir",
    "foldername",
    "dirname",
    "imagefolder",
    "imagedir",
)
SPLIT_NAMES = ("split", "set", "subset", "setname", "partition", "phase", "datasplit", "splitname")
UNUSABLE_FLAGS = ("isrejected", "isprecanned", "rejected", "precanned", "isspam")

SPLIT_WORDS = {
    "train": "train", "training": "train", "trainset": "train", "restval": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val", "eval": "val",
    "evaluation": "val", "valset": "val", "devset": "val", "devel": "val",
    "trn": "train", "vld": "val", "tst": "test",
    "test": "test", "testing": "test", "testset": "test", "testa": "test", "testb": "test", "testdev": "test",
}  # fmt: skip
_CAPTION_NUMBER = re.compile(r"(?<=\.\w{3})#[0-9]+$|(?<=\.\w{4})#[0-9]+$")
_WRAPPED = re.compile(
    r"""!?\[[^\]]*\]\(([^()\s]+)[^)]*\)|<img\b[^>]*\bsrc=["']?([^"'>]+)["'][^>]*>(?:</img>)?"""
    r"""|="([^"]+)"|=(?:HYPERLINK|IMAGE)\("([^"]+)".*\)|\\includegraphics(?:\[[^\]]*\])?\{([^{}]+)\}"""
    r"""|[*_`]{1,3}([^*`]+?)[*_`]{1,3}""",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z]+")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")  # of a cell, such as a class
_OF_LISTS = re.compile(r"(?:images?|imgs?|photos?|ids?|lists?|names?|files?|split|data|captions?)$")  # behind a split
_MEMBER = re.compile(r"(.+?)(?:[\s_.\-/\[(]*\d{1,3}|[\s_.\-/\[(]+[a-h])[\])]?", re.IGNORECASE)
_SHARD_DIGITS = re.compile(r"\d+")


def plain(name: str) -> str:
    """A column's name as it is compared."""
    return re.sub(r"[\s_.\-<>]+", "", name).lower()


def unwrapped(text: str) -> str:
    """The name in a picture, a link or a formula, as `![](a.jpg)`, `<img src="a.jpg">`, `=HYPERLINK("a.jpg")`, and
    without the number of a caption behind it, as `a.jpg#2`."""
    match = _WRAPPED.fullmatch(text)
    return _CAPTION_NUMBER.sub("", next(filter(None, match.groups())) if match else text)


def split_in(name: str) -> str | None:
    """The split that a file or folder is called by: `captions_train2017.json`, `val-00001.tar`, `testImages`."""
    words = (_OF_LISTS.sub("", word) if word not in SPLIT_WORDS else word for word in _WORD.findall(name.lower()))
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def split_word(text: str) -> str | None:
    """The split that a text is a word for, with or without digits: `train`, `Train2014`, `test-dev`."""
    return SPLIT_WORDS.get(plain(text).strip("0123456789"))


def split_name(text: str) -> str:
    """train, val or test for a set's own word for it (restval, dev, validation, ...).

    Raises:
        RowError: it is neither.
    """
    split = split_word(text)
    if split is None:
        raise RowError(f"unknown split '{shown(text)}' (known: train, val, test, restval, dev, validation)")
    return split


def column_family(base: str, columns: Iterable[str]) -> list[str]:
    """Columns that are numbered members of one family (`base` and a number or letter), with `base` itself."""
    columns = list(columns)
    members = [
        column for column in columns if (match := _MEMBER.fullmatch(column.strip())) and plain(match[1]) == base
    ]
    return [column for column in columns if column in members or plain(column) == base] if members else []


def caption_family(columns: Iterable[str]) -> list[str]:
    """Columns that are captions one beside the other: caption_0 … caption_4, comment 1, `caption` and `caption.1`."""
    columns = list(columns)
    return next(filter(None, (column_family(base, columns) for base in CAPTION_NAMES)), [])


def without_digits(name: str) -> str:
    """A file's name with its numbers taken out: shards of one table are alike in it."""
    return _SHARD_DIGITS.sub("#", name.lower())
