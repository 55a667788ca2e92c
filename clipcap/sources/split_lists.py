"""Lists of photos beside captions, as train.txt and test_ids.txt: which ones are for training, which held out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import list_folder, subfolders
from clipcap.images.kinds import is_image_name
from clipcap.images.photos import is_link
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources.beside import split_from_folder
from clipcap.sources.collector import Collector
from clipcap.sources.names import IMAGE_NAMES, NUMBER, plain, split_in, split_word
from clipcap.sources.textfiles import read_json, read_lines

_SUFFIXES = (".txt", ".lst", ".list", ".ids", ".csv", ".tsv", ".json")
_FOLDERS = (
    "splits split lists list imagesets main layout sets ids partitions flickr8k_text annotations text meta metadata"
).split()  # beside or below a table of captions, where lists lie
_MAX_BYTES = 16 * 2**20  # a hundred times the lists of COCO
_MOST_FILES = 50  # in a folder that are all looked into
_SAMPLE, _USUAL = 50, 0.9  # lines, and the share of them that name photos
_BETWEEN = re.compile(r"[\s,;|]+")
_HELD_OUT_FIRST = ("test", "val", "train")
_REST = {"train": "test", "val": "train", "test": "train"}  # of one list alone, as of one column of yes and no

Entry = tuple[str, str | None]  # name of a photo, and its split where the list says it


@dataclass(frozen=True)
class PhotoList:
    """A list of photos without captions."""

    path: Path
    entries: list[Entry]

    @property
    def has_splits(self) -> bool:
        """Whether it says to which split its photos belong."""
        return any(split for _, split in self.entries)


class PhotoIndex:
    """Photos by every name that a list may have for them: with and without folders, suffix and capitals."""

    def __init__(self, names: Iterable[tuple[str, ImageRef]]):
        self._by_leaf: dict[str, set[tuple[tuple[str, ...], ImageRef]]] = defaultdict(set)
        for name, photo in names:
            parts = _parts(name)
            for leaf in {parts[-1], _stem(parts[-1])}:
                self._by_leaf[leaf].add((parts[:-1], photo))

    def find(self, name: str) -> ImageRef | None:
        """The photo that a name means; None where there is none, or several."""
        *folders, leaf = _parts(name)
        found = self._by_leaf.get(leaf) or self._by_leaf.get(_stem(leaf)) or set()
        if len({photo for _, photo in found}) > 1:
            common = {(theirs, photo): _common(folders, theirs) for theirs, photo in found}
            found = {one for one, count in common.items() if count == max(common.values())}
        photos = {photo for _, photo in found}
        return photos.pop() if len(photos) == 1 else None


def beside(folders: Iterable[Path]) -> list[Path]:
    """The files in folders, and in those below that are called so, that may be lists of photos."""
    found: list[Path] = []
    for folder in dict.fromkeys(folders):
        for place in (folder, *(deeper for below in subfolders(folder, _FOLDERS) for deeper in _with_below(below))):
            names = list_folder(place)[1]
            photos = {_stem(name.lower()) for name in names if is_image_name(name)}
            texts = [name for name in names if os.path.splitext(name)[0].lower() not in photos]
            found += [place / name for name in candidates(texts)]
    return list(dict.fromkeys(found))


def _with_below(folder: Path) -> list[Path]:
    return [folder, *subfolders(folder, _FOLDERS)]


def candidates(names: Iterable[str]) -> list[str]:
    """The files that may be lists of photos, by their suffix; of many, and without one, by a word for a split."""
    found = [name for name in names if name.lower().endswith(_SUFFIXES) or "." not in name]
    few = len(found) <= _MOST_FILES
    return [name for name in found if ("." in name and few) or split_in(os.path.basename(name))]


def find_lists(paths: Iterable[Path], photos: PhotoIndex) -> list[PhotoList]:
    """Those of the files that list photos and hold no captions."""
    found = []
    for path in paths:
        try:
            entries = _read(path, photos) if path.is_file() and path.stat().st_size <= _MAX_BYTES else None
        except (ClipcapError, OSError):  # of another kind
            continue
        if entries:
            found.append(PhotoList(path, entries))
    return found


def _read(path: Path, photos: PhotoIndex) -> list[Entry] | None:
    """The entries of a list; None where the file is something else."""
    own = split_in(path.stem)
    if path.suffix.lower() == ".json":
        entries = list(_in_json(read_json(path), own))
        sure = all(isinstance(name, str) and len(name) < 500 for name, _ in entries)
        return entries if sure and _are_photos([name for name, _ in entries], photos) else None
    sample = [line.strip() for line in islice(read_lines(path), _SAMPLE + 1) if line.strip()]
    read = [_in_line(line, own, photos) for line in sample]
    read = read[1:] if read and read[0] is None and _is_header(sample[0]) else read
    if not read or sum(entry is not None for entry in read) < _USUAL * len(read):
        return None
    lines = (line.strip() for line in read_lines(path) if line.strip())
    return [entry for line in lines if (entry := _in_line(line, own, photos)) is not None]


def _in_json(value: object, own: str | None) -> Iterator[Entry]:
    """The entries in `[name]`, `{split: [name]}`, `{name: split}` or a list of objects with a name and a split."""
    for key, part in value.items() if isinstance(value, dict) else ():
        if isinstance(part, list):
            yield from _in_json(part, split_in(str(key)) or own)
        elif isinstance(part, str) and split_word(part):
            yield str(key), split_word(part)
        else:
            raise ClipcapError("not a list of photos")
    for part in value if isinstance(value, list) else ():
        if isinstance(part, dict):
            name = next((cell for key, cell in part.items() if plain(str(key)) in IMAGE_NAMES), None)
            words = [cell for cell in part.values() if cell != name]
            if not isinstance(name, str) or any(isinstance(cell, str) and not split_word(cell) for cell in words):
                raise ClipcapError("not a list of photos")
            yield name, next((split_word(cell) for cell in words if isinstance(cell, str)), own)
        else:
            yield str(part), own


def _are_photos(names: list[str], photos: PhotoIndex) -> bool:
    sample = names[:_SAMPLE]
    return sum(is_image_name(name) or photos.find(name) is not None for name in sample) >= _USUAL * len(sample) > 0


def _is_header(line: str) -> bool:
    cells = [plain(cell.strip(" \"'")) for cell in _BETWEEN.split(line)]
    return any(cell in (*IMAGE_NAMES, "id", "imageid", "name", "key") for cell in cells)


def _in_line(line: str, own: str | None, photos: PhotoIndex) -> Entry | None:
    """The photo in a line of a list: alone, or beside numbers and a word for a split; None in other lines."""
    whole = line.strip(" \"',")
    if is_link(whole):
        return None
    if photos.find(whole) is not None or (is_image_name(whole) and not _BETWEEN.search(whole)):
        return whole, own
    cells = [cell.strip("\"'") for cell in _BETWEEN.split(whole)]
    names = [cell for cell in cells if is_image_name(cell)]
    names = names or [cell for cell in cells if photos.find(cell) is not None][:1]
    others = [cell for cell in cells if cell not in names and cell and not NUMBER.fullmatch(cell)]
    if len(names) != 1 or any(split_word(cell) is None for cell in others):
        return None
    return names[0], next((split_word(cell) for cell in others), own)


def use_folders(collector: Collector, places: Iterable[str], root: Path) -> None:
    """Give the collector's images the splits that their folders are called by, if all of them have one."""
    base = str(root)
    splits = {place: split_from_folder(f"{place.removeprefix(base)}/x".replace(os.sep, "/")) for place in places}
    if None in splits.values() or len(set(splits.values())) < 2:
        return
    found = {photo: splits.get(os.path.dirname(photo.member or photo.path)) for _, photo in collector.names()}
    collector.use_splits({photo: split for photo, split in found.items() if split}, None)
    collector.note(f"splits from the folders of the photos: {_counts(found.values())}")


def _counts(splits: Iterable[str | None]) -> str:
    return ", ".join(f"{split or 'none'} {count:,}" for split, count in Counter(splits).items())


def use_lists_beside(collector: Collector, folders: Iterable[Path], read: Iterable[Path] = ()) -> None:
    """`use_lists` of those in folders; `read` holds the tables that are read."""
    if files := [path for path in beside(folders) if path not in {*read}]:
        use_lists(collector, find_lists(files, PhotoIndex(collector.names())))


def use_lists(collector: Collector, lists: list[PhotoList]) -> None:
    """Give the collector's images the splits that lists say, if they have none of their own; all lists are noted."""
    for one in lists:
        if not one.has_splits:
            collector.note(
                f"{shown(one.path)} lists photos, without captions: not used; under the name of a split it is one"
            )
    lists = [one for one in lists if one.has_splits]
    if not lists:
        return
    names = ", ".join(shown(one.path.name) for one in lists)
    if collector.has_splits:
        collector.note(f"{names}: not used, as the captions have splits of their own")
        return
    photos = PhotoIndex(collector.names())
    found: dict[ImageRef, set[str]] = defaultdict(set)
    unknown = 0
    for name, split in (entry for one in lists for entry in one.entries):
        photo = photos.find(name)
        unknown += photo is None
        if photo is not None and split:
            found[photo].add(split)
    splits = {photo: next(s for s in _HELD_OUT_FIRST if s in several) for photo, several in found.items()}
    if not splits:
        collector.note(f"{names}: not used, as no photo in them has a caption")
        return
    words = set(splits.values())
    rest = _REST[next(iter(words))] if len(words) == 1 else None
    without = collector.use_splits(splits, rest)
    if len(words) == 1 and not without:
        collector.use_splits({}, None)
        collector.note(f"{names}: not used, as all photos are in one split by it")
        return
    collector.note(f"splits from {names}: {_counts(splits.values())}")
    twice = sum(len(several) > 1 for several in found.values())
    collector.note_count(twice, "photo", f"in the lists of two splits: {' before '.join(_HELD_OUT_FIRST)}")
    collector.note_count(
        without, "image", f"in none of these lists: {f'taken for {rest}' if rest else 'in no split'}"
    )
    collector.note_count(unknown, "name", "in these lists of no photo with a caption")


def _parts(name: str) -> tuple[str, ...]:
    folded = unicodedata.normalize("NFC", name.replace("\\", "/").strip()).casefold()
    return tuple(part for part in folded.split("/") if part not in ("", ".", "..")) or ("",)


def _stem(leaf: str) -> str:
    return leaf.rpartition(".")[0] if is_image_name(leaf) else leaf


def _common(ours: list[str], theirs: tuple[str, ...]) -> int:
    """How many folders at the end of two paths are the same."""
    pairs = zip(reversed(ours), reversed(theirs))
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))
