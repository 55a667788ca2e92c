"""The photo that a name means: one rule for every source, and a line for each liberty that it took."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from clipcap.errors import ClipcapError
from clipcap.images.folders import list_folder
from clipcap.images.kinds import IMAGE_SUFFIXES, is_image_name
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import counted, in_short

MAX_DEPTH = 5  # folders below the set's own that are searched for a photo not where its name says
MAX_FOLDERS = 20_000
SHORTEST_IN_LINK = 5  # of the end of a link that has no suffix, for it to be a photo's name

_LINK = re.compile(r"(?:[a-z][a-z0-9+.-]+:)?//[^/\\]+[/\\]|www\.", re.IGNORECASE)
_FILE_LINK = re.compile(r"file:(?://(?:localhost)?)?(?=[/\\])", re.IGNORECASE)
_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
_DRIVE = re.compile(r"[a-zA-Z]:(?=[/\\])")
_NUMBER = re.compile(r"0*([0-9]{1,18})(?:\.0)?")
# Of files: a number alone, or one padded with zeros behind other signs, as in COCO_val2014_000000000042.
_FILE_NUMBER = re.compile(r"0*([0-9]{1,18})|.*[^0-9](?=[0-9]{6,18}$)0+([1-9][0-9]*)")
_SIGNS = re.compile(r"[\s!-/:-@\[-`{-~]+")
_CAPTION_NUMBER = re.compile(r"#[0-9]+$")
# Label Studio's, before the names of uploads, and the marks of lists.
_TOOL_SIGNS = re.compile(r"^(?:[0-9a-f]{8}-|[-*+\u2013\u2014\u2022] (?:\[[ xX]\] )?|[(\[]?\d{1,5}[.):\]]+ )")
_UNSEEN = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"  # copied with a path

BACKSLASHES, ESCAPES, END = "with backslashes read as slashes", "after percent-decoding", "by the end of their path"
CASE, UNICODE = "without regard to case", "after Unicode normalisation"
SUFFIX, NUMBER, BELOW = "with another suffix", "by their number", "in a folder further down"
PREFIX = "without the signs before their name"
SIGNS = "with other signs between their words"


class PhotoNameError(ClipcapError):
    """A name that can be no file of the set."""


class PhotoLinkError(PhotoNameError):
    """An address on the web in place of a file name."""


class Photos:
    """Finds photos by name in a few folders; each folder is listed once, when first asked for.

    A name is looked up as written, in each of the folders; if that finds nothing, below the folders, by what a
    person would call the same name: capitals, Unicode forms, suffix, slashes, escapes, and the folders of another
    machine make no difference. A photo that fits must be the only one; `notes` reports what was done.

    Args:
        folders: where photos lie as a rule; everything below them is searched for what is not there.
        anywhere: follow full paths and `..`, in a set of the user's own; else names stay inside the folders.
    """

    def __init__(self, folders: Sequence[Path | str], anywhere: bool = False):
        self.folders = list(dict.fromkeys(folders))
        self._anywhere = anywhere
        self._listed: dict[str, frozenset[str]] = {}
        self._found: dict[str, set[str]] = {}
        self._ways: Counter[str] = Counter()
        self._several = 0
        self._last: tuple[tuple[str, ...], Path] = ((), Path())
        self.links = 0  # names that were links, found or not
        self._means: dict[str, tuple[str, ...]] = {}  # the folders in the name by which a photo was found

    def find(self, *names: str) -> Path:
        """The photo that the first of `names` means which means one, else where that of the first ought to be.

        A name may lack its suffix.

        Raises:
            PhotoLinkError: it is a link, and no file is called like its end.
            PhotoNameError: it is empty, or leaves the folders where it may not.
        """
        if names == self._last[0]:  # the next caption of an image
            return self._last[1]
        places = [name for name in names if self.stays_inside(name)]
        self.links += is_link(names[0])
        found = self._lookup(places) or next(filter(None, map(self._loosely, names)), None)
        if found is None:
            self._refuse(names[0])
            place = self._rightful_place(names[0])
        else:
            parent, leaf = os.path.split(found)
            self._found.setdefault(parent, set()).add(leaf)
            place = Path(found)
        self._last = names, place
        return place

    def place(self, *names: str) -> ImageRef:
        """Where the photo that goes by one of `names` lies; raises what `find` does."""
        return ImageRef(self.find(*names))

    def knows(self, name: str) -> bool:
        """Whether a photo of that name exists."""
        return bool((self.stays_inside(name) and self._lookup([name])) or self._loosely(name, count=False))

    def notes(self) -> list[str]:
        """What was done to find the photos, a line each."""
        notes = [f"{counted(count, 'name')} matched {way}" for way, count in self._ways.items()]
        if self._several:
            notes.append(f"{counted(self._several, 'name')} fit several photos: write their folder too")
        return notes

    def any_there(self) -> bool:
        """Whether there is any photo in or below the folders."""
        return any(True for base in self.folders for _ in self._below(str(base)))

    @property
    def places(self) -> list[str]:
        """The folders in which photos were found."""
        return list(self._found)

    def unnamed(self) -> int:
        """Photos in the folders where some were found that no name meant."""
        return sum(sum(map(is_image_name, self._names(folder) - found)) for folder, found in self._found.items())

    def stays_inside(self, name: str) -> bool:
        """Whether a name may be joined to a folder as written."""
        if self._anywhere:
            return bool(name) and "\0" not in name
        path = PureWindowsPath(name)  # knows both kinds of slash, and drives
        return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name

    def _refuse(self, name: str) -> None:
        if is_link(name):
            raise PhotoLinkError(f"'{in_short(name)}' is a link, not a file name")
        if not self.stays_inside(name):
            raise PhotoNameError(f"'{in_short(name)}' is not a file name inside the folder of the photos")

    def _lookup(self, names: Sequence[str]) -> str | None:
        for folder in self.folders:
            for name in names:
                parent, leaf = os.path.split(os.path.join(folder, name))
                there = self._names(parent)
                if leaf in there:
                    return os.path.join(parent, leaf)
                if not is_image_name(leaf):
                    for suffix in IMAGE_SUFFIXES:
                        for whole in (leaf + suffix, leaf + suffix.upper()):
                            if whole in there:
                                return os.path.join(parent, whole)
        return None

    def _rightful_place(self, name: str) -> Path:
        """Beside the other photos, where there are any."""
        name = name if is_image_name(name) else f"{name}.jpg"
        places = [Path(folder, name) for folder in self.folders]
        return next((p for p in places if any(map(is_image_name, self._names(str(p.parent))))), places[0])

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(list_folder(Path(folder))[1])
            except ClipcapError:  # not there, or not for us: its photos will be listed as missing
                self._listed[folder] = frozenset()
        return self._listed[folder]

    def _below(self, base: str) -> Iterator[str]:
        return _images_below(base)

    def _loosely(self, name: str, count: bool = True) -> str | None:
        """The one photo below the folders that a person would call by this name."""
        text, ways = _plain(name)
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        if not parts or "\0" in name:
            return None
        folded = tuple(map(_fold, parts))
        if is_link(name) and not is_image_name(folded[-1]) and len(folded[-1]) < SHORTEST_IN_LINK:
            return None  # https://example.org/7 need not be the picture 7.jpg
        for way, candidates in self._candidates(folded[-1]):
            if way == NUMBER and is_link(name):
                return None
            fits = self._fitting(folded, candidates)
            if len(fits) > 1:
                self._several += count
                return None
            if fits:
                base, relative = fits[0]
                theirs = relative.replace("\\", "/").split("/")
                dropped = folded[: max(0, len(folded) - _common(folded, tuple(map(_fold, theirs))))]
                found = os.path.join(base, relative)
                if count and self._means.setdefault(found, dropped) != dropped:
                    return None  # two folders of the table would be one here: cats/1.jpg and dogs/1.jpg
                if count:
                    self._ways[" and ".join(_liberties(parts, theirs, ways, way, bool(dropped))) or BELOW] += 1
                return found
        return None

    def _candidates(self, leaf: str) -> Iterator[tuple[str | None, list[tuple[str, str]]]]:
        """(liberty taken, photos) for ever wider readings of the last part of a name."""
        by_name, by_stem, by_number, by_words = self._index
        stem = _stem(leaf)
        yield None, by_name.get(leaf, [])
        yield SUFFIX, by_stem.get(stem, []) or by_stem.get(leaf, [])
        if (bare := _TOOL_SIGNS.sub("", leaf)) != leaf:
            yield PREFIX, by_name.get(bare, [])
        yield SIGNS, by_words.get(_words(stem), [])
        if match := _NUMBER.fullmatch(stem):
            yield NUMBER, by_number.get(match[1], [])

    def _fitting(self, folded: tuple[str, ...], candidates: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those whose folders agree best with the name's, unless one of their folders contradicts it."""
        scored = []
        for base, relative in candidates:
            theirs = tuple(map(_fold, relative.replace("\\", "/").split("/")))
            common = _common(folded, theirs)
            parent = os.path.dirname(os.path.join(base, relative))
            if common == len(folded) or common == len(theirs) or parent in self._containers:
                scored.append((common, base, relative))
        best = max((common for common, *_ in scored), default=0)
        return [(base, relative) for common, base, relative in scored if common == best]

    @cached_property
    def _containers(self) -> set[str]:
        """Folders whose name says nothing of the photos in them: the usual ones, and one that holds all there are."""
        holding = {
            os.path.dirname(os.path.join(base, relative))
            for found in self._index[0].values()
            for base, relative in found
        }
        return {str(folder) for folder in self.folders} | (holding if len(holding) == 1 else set())

    @cached_property
    def _index(self) -> tuple[dict[str, list], dict[str, list], dict[str, list], dict[str, list]]:
        """Every photo below the folders, by its name, its stem, its number and its words, without regard to case."""
        by_name: dict[str, list] = {}
        by_stem: dict[str, list] = {}
        by_number: dict[str, list] = {}
        by_words: dict[str, list] = {}
        seen: set[str] = set()
        for base in map(str, self.folders):
            for relative in self._below(base):
                path = os.path.join(base, relative)
                if path in seen:
                    continue
                seen.add(path)
                leaf = _fold(re.split(r"[/\\]", relative)[-1])
                stem = _stem(leaf)
                by_name.setdefault(leaf, []).append((base, relative))
                by_stem.setdefault(stem, []).append((base, relative))
                by_words.setdefault(_words(stem), []).append((base, relative))
                if match := _FILE_NUMBER.fullmatch(stem):
                    by_number.setdefault(match[1] or match[2], []).append((base, relative))
        return by_name, by_stem, by_number, by_words


def is_link(name: str) -> bool:
    """Whether a name is an address on the web."""
    return _LINK.match(name) is not None and _FILE_LINK.match(name) is None


def _plain(name: str) -> tuple[str, list[str]]:
    """(a name with slashes and without escapes, drive, scheme, query and quotes; the liberties taken for it)."""
    ways = []
    text = name.strip().strip(_UNSEEN).strip("\"'").strip()
    text = _FILE_LINK.sub("", text)
    link = _LINK.match(text)
    if link:
        text = text[link.end() - 1 :].partition("?")[0].partition("#")[0]
    if "\\" in text:
        text, ways = text.replace("\\", "/"), [BACKSLASHES]
    text = _CAPTION_NUMBER.sub("", _DRIVE.sub("", text, count=1))
    if _ESCAPE.search(text):
        text = unquote(text)
        ways.append(ESCAPES)
    return text, ways


def _liberties(
    parts: Sequence[str], theirs: Sequence[str], ways: list[str], way: str | None, dropped: bool
) -> list[str]:
    """What was done to a name to find its photo, for the note."""
    pairs = list(zip(reversed(parts), reversed(theirs)))
    if way and (is_image_name(parts[-1]) or way != SUFFIX):
        ways = [*ways, way]
    if way:  # the last parts differ by more than their spelling
        pairs[0] = (_stem(pairs[0][0]), _stem(pairs[0][1])) if way == SUFFIX else ("", "")
    pairs = [pair for pair in pairs if _fold(pair[0]) == _fold(pair[1])]
    if any(unicodedata.normalize("NFC", a) != unicodedata.normalize("NFC", b) for a, b in pairs):
        ways = [*ways, CASE]
    elif any(a != b for a, b in pairs):
        ways = [*ways, UNICODE]
    return [*ways, *[END] * dropped]


def _common(folded: tuple[str, ...], theirs: tuple[str, ...]) -> int:
    """How many parts at the end are the same; the last one always, where a wider reading found it."""
    common = 1
    while common < min(len(folded), len(theirs)) and folded[-1 - common] == theirs[-1 - common]:
        common += 1
    return common


def _images_below(base: str) -> Iterator[str]:
    """Image files below a folder, as paths relative to it."""
    pending, entered = [("", 0)], set()
    while pending and len(entered) < MAX_FOLDERS:
        relative, depth = pending.pop()
        here = os.path.join(base, relative)
        try:
            status = os.stat(here)
            folders, files = list_folder(Path(here))
        except (ClipcapError, OSError):
            continue
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        yield from (os.path.join(relative, name) for name in files if is_image_name(name))
        if depth < MAX_DEPTH:
            pending += [(os.path.join(relative, name), depth + 1) for name in reversed(folders)]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _words(stem: str) -> str:
    """A stem with one sign for blanks and for what drives and browsers put in place of signs: `a (1)`, `a_1_`."""
    return _SIGNS.sub("_", stem)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if is_image_name(name) else name
