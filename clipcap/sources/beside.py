"""Captions in files beside photos, in a folder or in a tar: which text belongs to which photo, and what it says."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from clipcap.errors import ClipcapError
from clipcap.images.folders import counted_suffixes, natural_key
from clipcap.images.kinds import is_image_name
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources.cells import NUMBERS, are_boxes, captions_in
from clipcap.sources.collector import Collector, caption_lines
from clipcap.sources.faults import RowError
from clipcap.sources.markup import bare_lines
from clipcap.sources.names import SPLIT_WORDS
from clipcap.sources.rows import Part
from clipcap.sources.textfiles import TextPlace, parse_json, read_lines

# The first of these that a photo has is its caption: taggers write .txt beside the .caption of captioners.
CAPTION_SUFFIXES = (
    ".caption", ".captions", ".cap", ".txt", ".text", ".prompt", ".description", ".desc", ".json", ".tags", ".tag"
)  # fmt: skip
MAX_TEXT_BYTES = 16 * 2**20  # a caption file beyond this is a mistake or an attack
UNREADABLE_TEXT = "with a caption file that cannot be read"
_POST_NUMBER = re.compile(r"_\d{1,2}$")
_TEXT_NUMBER = re.compile(r"[_.\-]\d{1,2}$")
_OF_TEXTS = re.compile(
    r"^(?:captions?|texts?|desc|descriptions?|prompts?)[_ -]+|[_ -]+(?:captions?|texts?|desc|descriptions?|prompts?)$"
)
_OF_PHOTOS = re.compile(r"^(?:images?|img|photos?|pictures?|pic)[_ -]+|[_ -]+(?:images?|img|photos?|pictures?|pic)$")


@dataclass
class Pairs:
    """Photos, each with the texts that may be its caption, the likeliest first."""

    texts: dict[str, list[str]]
    elsewhere: int = 0  # photos whose text lies in another folder
    alone: int = 0  # photos whose text has another name, but is the only one in their folder
    unused: list[str] = field(default_factory=list)  # texts of no photo


def pair(files: Iterable[str], is_image: Callable[[str], bool] = is_image_name) -> Pairs:
    """Find the texts of each photo among the files of a set.

    A text has the name of its photo with another suffix, or behind it (`1.jpg.txt`), whatever the capitals; it lies
    beside the photo, or alone of its name in another folder (`captions/1.txt`). Where names have several dots, the
    part up to the first one may be what they share (`1.image.jpg`, `1.caption.txt`), as in webdataset tars.

    Args:
        files: paths relative to the set, with slashes.
    """
    names = list(files)
    photos = [name for name in names if is_image(name)]
    texts = [name for name in names if name.lower().endswith(CAPTION_SUFFIXES) and not is_image(name)]
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in texts:
        by_stem[_stem(name)].append(name)
        if (folded := _folded(_stem(name))) != _stem(name):
            by_stem[folded].append(name)
    pairs = Pairs({})
    stems = Counter(_folded(_stem(photo)) for photo in photos)
    by_leaf, by_number = _grouped(texts, _leaf), _grouped(texts, _before_number)
    by_key, photos_of_key = _grouped(texts, _first_dot), Counter(_first_dot(photo) for photo in photos)
    by_bare = _grouped(texts, lambda text: _bare(text, _OF_TEXTS))
    photos_of_bare = Counter(_bare(photo, _OF_PHOTOS) for photo in photos)
    for photo in photos:
        stem = _stem(photo)
        keys = (stem, _folded(stem), photo, _folded(photo))
        found = next((by_stem[key] for key in keys if key in by_stem), None)
        if not found and photos_of_key[_first_dot(photo)] == 1:
            found = by_key.get(_first_dot(photo))
        if not found and not stems[_folded(_POST_NUMBER.sub("", stem))]:  # several photos of one post
            found = by_stem.get(_POST_NUMBER.sub("", stem))
        if not found:  # a text for each of its captions: 1_0.txt, 1_1.txt
            found = [text for text in by_number.get(_folded(stem), ()) if not stems[_folded(_stem(text))]]
        if not found:
            found = _in_other_folder(photo, by_leaf, stems)
            pairs.elsewhere += bool(found)
        if not found and photos_of_bare[_bare(photo, _OF_PHOTOS)] == 1:
            found = [text for text in by_bare.get(_bare(photo, _OF_PHOTOS), ()) if not stems[_folded(_stem(text))]]
            found = found if len(found) == 1 else []
            pairs.elsewhere += any(posixpath.dirname(text) != posixpath.dirname(photo) for text in found)
        pairs.texts[photo] = sorted(set(found or ()), key=lambda name: (_rank(name), natural_key(name)))
    used = {text for found in pairs.texts.values() for text in found}
    pairs.unused = [name for name in texts if name not in used]
    _pair_by_folder(pairs)
    return pairs


def _pair_by_folder(pairs: Pairs) -> None:
    """Pair a photo and a text that are alone in their folder, where there are several such folders."""
    if len(pairs.unused) < 2:
        return
    texts, photos = _grouped(pairs.unused, posixpath.dirname), _grouped(pairs.texts, posixpath.dirname)
    found = {
        photos[folder][0]: names[0]
        for folder, names in texts.items()
        if len(names) == 1 and len(photos.get(folder, ())) == 1 and not pairs.texts[photos[folder][0]]
    }
    if len(found) > 1:
        pairs.texts |= {photo: [text] for photo, text in found.items()}
        pairs.unused = [name for name in pairs.unused if name not in found.values()]
        pairs.alone = len(found)


def add_pairs(
    collector: Collector, pairs: Pairs, image: Callable[[str], ImageRef], text: Callable[[str], TextPlace], part: Part
) -> None:
    """Add each photo with what its texts say; photos without a caption are counted."""
    splits = {photo: split_from_folder(photo) for photo in pairs.texts}
    own = {split for photo, split in splits.items() if pairs.texts[photo]}
    lonely, unreadable, boxes, others = 0, 0, 0, Counter()
    for photo, texts in pairs.texts.items():
        try:
            captions, which = _first_captions(photo, texts, text)
        except ClipcapError as error:
            collector.faults.add("caption file", error, "a caption file that cannot be read")
            unreadable += 1
            continue
        if not captions:
            lonely += 1
            continue
        if are_boxes(captions):
            boxes += 1
            continue
        others.update(posixpath.splitext(name)[1].lower() for name in texts[texts.index(which) + 1 :])
        collector.add(
            part.prefix + photo, image(photo), captions, part.split or (splits[photo] if len(own) > 1 else None)
        )
    kinds = ", ".join(CAPTION_SUFFIXES[:5])
    collector.leave_out(lonely, "photo", f"no caption file of the same name ({kinds}, ...)")
    collector.leave_out(unreadable, "photo", "caption file unreadable", UNREADABLE_TEXT)
    collector.leave_out(boxes, "photo", f"caption file unusable: of {NUMBERS}")
    del others[".json"]  # of img2dataset and the like: what is known of the picture
    if others:
        listed = ", ".join(f"{suffix} {count:,}" for suffix, count in others.items())
        collector.note(
            f"several caption files beside a photo: {', '.join(CAPTION_SUFFIXES)} in this order; not read: {listed}"
        )
    if pairs.elsewhere:
        collector.note_count(pairs.elsewhere, "photo", "found with the caption in another folder")
    collector.note_count(pairs.alone, "photo", "with the only text in its folder as the caption")
    collector.note_count(len(pairs.unused), "caption file", f"without a photo ({counted_suffixes(pairs.unused)})")


def _first_captions(photo: str, texts: list[str], place: Callable[[str], TextPlace]) -> tuple[list[str], str]:
    """(captions in the first of the texts that holds some, that text); the name of the photo's file is none."""
    empty: tuple[list[str], str] = ([], "")
    leaf = _folded(posixpath.basename(photo))
    numbered = [name for name in texts if _TEXT_NUMBER.search(_stem(name)) and _rank(name) == _rank(texts[0])]
    for name in texts:
        several = numbered if name in numbered else [name]
        found = [caption for one in several for caption in read_caption_file(place(one), one)]
        if name.lower().endswith(".json"):  # Google calls that its title
            found = [caption for caption in found if _folded(caption.strip()) not in (leaf, _stem(leaf))]
        if any(map(str.strip, found)):
            return found, several[-1]
        if found and not empty[1]:
            empty = found, name  # an empty file counts as an empty caption
    return empty


def read_caption_file(place: TextPlace, name: str) -> list[str]:
    """The captions in a file beside a photo: one a line, or in JSON; none where JSON holds none.

    Raises:
        ClipcapError: it cannot be read.
    """
    if isinstance(place, ImageRef) and place.size > MAX_TEXT_BYTES:
        raise ClipcapError(f"{shown(place)}: {place.size:,} bytes are too long for a caption")
    text = "".join(read_lines(place))
    if not name.lower().endswith(".json"):
        return [caption for line in bare_lines(caption_lines(text)) for caption in captions_in(line)]
    try:
        return captions_in(parse_json(text, shown(place)))
    except RowError:
        return []


def split_from_folder(name: str) -> str | None:
    """The split that a folder of a path is called by, the outermost one."""
    return next((SPLIT_WORDS[part.lower()] for part in name.split("/")[:-1] if part.lower() in SPLIT_WORDS), None)


def _in_other_folder(photo: str, by_leaf: dict[str, list[str]], stems: Counter[str]) -> list[str]:
    """The texts of a photo's name in a folder that holds no such photo, where that is only one folder."""
    found = [text for text in by_leaf.get(_leaf(photo), []) if not stems[_folded(_stem(text))]]
    folders = {posixpath.dirname(text) for text in found}
    if len(folders) > 1:  # images/train/1.jpg, captions/train/1.txt, captions/val/1.txt
        mine = photo.lower().split("/")[1:-1]
        folders = {folder for folder in folders if mine and folder.lower().split("/")[-len(mine) :] == mine}
    return [text for text in found if posixpath.dirname(text) in folders] if len(folders) == 1 else []


def _grouped(names: Iterable[str], key: Callable[[str], str | None]) -> dict[str, list[str]]:
    """Names by their keys, without those that have none."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if (group := key(name)) is not None:
            found[group].append(name)
    return found


def _leaf(name: str) -> str:
    return posixpath.basename(_folded(_stem(name)))


def _before_number(name: str) -> str | None:
    """A path without the number that its last part ends in, and without suffix; None where there is no number."""
    stem = _folded(_stem(name))
    bare = _TEXT_NUMBER.sub("", stem)
    return None if bare == stem else bare


def _bare(name: str, words: re.Pattern[str]) -> str:
    """The last part of a path without suffixes, and without a word for what it is: `caption_7`, `7_caption`, `7`."""
    leaf = posixpath.basename(_first_dot(name))
    return words.sub("", leaf) or leaf


def _first_dot(name: str) -> str:
    folder, leaf = posixpath.split(_folded(name))
    return posixpath.join(folder, leaf.partition(".")[0])


def _folded(name: str) -> str:
    """A path as it is compared: whatever its capitals and Unicode form, and with slashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).lower()


def _stem(name: str) -> str:
    folder, leaf = posixpath.split(name)
    return posixpath.join(folder, posixpath.splitext(leaf)[0])


def _rank(name: str) -> int:
    return CAPTION_SUFFIXES.index(posixpath.splitext(name)[1].lower())
