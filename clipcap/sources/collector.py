"""Captions of a set, gathered into one sorted record per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from clipcap.errors import ClipcapError
from clipcap.images.folders import in_natural_order
from clipcap.images.photos import Photos
from clipcap.images.ref import ImageRef
from clipcap.runtime.scripts import most_lack_blanks
from clipcap.runtime.text import counted, shown
from clipcap.sources.config import SourceConfig
from clipcap.sources.faults import Faults
from clipcap.sources.record import Record
from clipcap.sources.split import split_records

_MANY = 6  # captions, from which on single words are remarkable
NO_CAPTION = "without a caption"  # why images are left out


@dataclass(frozen=True)
class Source:
    """An image-caption set: records sorted by image id, and remarks worth printing, one line each."""

    name: str
    records: list[Record]
    notes: list[str]
    left_out: dict[str, int] = field(default_factory=dict)  # images by the reason: "without a caption"

    unnamed: int = 0  # photos beside those of a table that no row names
    rows_left_out: int = 0  # of tables: broken, without an image's name, or with one that can be no file's

    @property
    def seen(self) -> int:
        """The number of images with a record and images left out."""
        return len(self.records) + sum(self.left_out.values())


def clean_caption(text: str) -> str:
    """One line of text: every run of white space (also \\r, \\v, \\f, U+2028, NUL) becomes one blank.

    Half surrogates, which JSON can smuggle in and no file or tokenizer takes, are removed.
    """
    return " ".join(text.replace("\0", " ").encode("utf-8", "ignore").decode("utf-8").split())


def caption_lines(text: str) -> list[str]:
    """The captions in a text file beside an image: one on each line that is not blank."""
    return [line for line in text.split("\n") if line.strip()] or [""]


@dataclass(slots=True)
class _Image:
    image: ImageRef
    split: str | None
    captions: list[str] = field(default_factory=list)


class Collector:
    """Takes captions in any order and gives the `Source`: cleaned, grouped by image, split, sorted."""

    def __init__(self, name: str):
        self._name = name
        self._images: dict[str, _Image] = {}
        self._notes: list[str] = []
        self._empty = 0
        self._left_out: Counter[str] = Counter()
        self._unnamed = self._nameless = 0
        self.faults = Faults()  # rows left out
        self.remarks: Counter[str] = Counter()  # what was done to make sense of others
        self.unusable: Counter[str] = Counter()  # captions that the set marks as such, by the mark

    def note(self, text: str) -> None:
        """Add a remark for the user."""
        self._notes.append(text)

    def note_count(self, count: int, noun: str, remark: str) -> None:
        """Add a remark on a number of things, where there are any."""
        if count:
            self.note(f"{counted(count, noun)} {remark}")

    def leave_out(self, count: int, noun: str, why: str, reason: str = NO_CAPTION) -> None:
        """Add a remark on images left out; `reason` is what the `Source` counts them under."""
        self.note_count(count, noun, f"left out: {why}")
        self._left_out[reason] += count

    def note_nameless(self, count: int, why: str) -> None:
        """Add a remark on rows without an image's name, which are left out."""
        self.note_count(count, "row", f"left out: {why}")
        self._nameless += count

    def note_photos(self, photos: Photos) -> None:
        """Report what was done to find photos, and count those that nothing named."""
        for note in photos.notes():
            self.note(note)
        unnamed = photos.unnamed()
        self.note_count(unnamed, "photo", "left out: named in no row")
        self._unnamed += unnamed

    def add(self, image_id: str, image: ImageRef, captions: list[str], split: str | None = None) -> None:
        """Add captions of an image; an image may come several times, but always in the same split."""
        image_id = image_id.encode("utf-8", "backslashreplace").decode("utf-8")
        entry = self._images.setdefault(image_id, _Image(image, split))
        if entry.split != split:
            raise ClipcapError(
                f"{self._name}: image {shown(image_id)} is in two splits ({entry.split} and {split}): "
                "splits are by image, never by caption"
            )
        texts = [clean_caption(caption) for caption in captions]
        self._empty += texts.count("")
        entry.captions += filter(None, texts)

    def names(self) -> Iterator[tuple[str, ImageRef]]:
        """The names of every image: its id, and its path."""
        for key, entry in self._images.items():
            yield key, entry.image
            if entry.image.data is None and entry.image.column is None:
                yield str(entry.image), entry.image

    @property
    def has_splits(self) -> bool:
        """Whether an image has a split."""
        return any(entry.split for entry in self._images.values())

    def use_splits(self, splits: dict[ImageRef, str], rest: str | None) -> int:
        """Set the split of every image, `rest` for those that `splits` lacks; returns how many these are."""
        for entry in self._images.values():
            entry.split = splits.get(entry.image, rest)
        return sum(entry.image not in splits for entry in self._images.values())

    def finish(self, config: SourceConfig) -> Source:
        """The source, split by image if the set has no split of its own and --train_size asks for one."""
        for note in self.faults.notes():
            self.note(note)
        for remark, count in self.remarks.items():
            self.note(f"{remark}: {count:,}")
        captions = [caption for entry in self._images.values() for caption in entry.captions]
        single, total = sum(" " not in caption for caption in captions), len(captions)
        if single * 2 > total >= _MANY and not most_lack_blanks(captions):
            self.note(f"{single:,} of {total:,} captions are single words: is that what they ought to be?")
        marks = ", ".join(f"{shown(mark)} {count:,}" for mark, count in self.unusable.items())
        self.note_count(self.unusable.total(), "caption", f"left out: marked as unusable ({marks})")
        self.note_count(self._empty, "empty caption", "dropped")
        images = self._images
        self._join_names()
        without = [key for key, entry in images.items() if not entry.captions]
        for key in without:
            del images[key]
        self.leave_out(len(without), "image", "no caption")
        if not images:
            where = shown(config.captions or config.data_path)
            alone = ["photos alone: `clipcap parse photos` or `clipcap index`"] * bool(self._left_out[NO_CAPTION])
            raise ClipcapError("; ".join([f"{where}: no image with a caption", *self._notes, *alone]))
        records = []
        for key in in_natural_order(images):
            entry = images.pop(key)  # not two copies of a set of millions
            records.append(Record(key, entry.image, tuple(entry.captions), entry.split))
        left_out = {reason: count for reason, count in self._left_out.items() if count}
        rows = len(self.faults) + self._nameless
        return Source(self._name, self._split(records, config), self._notes, left_out, self._unnamed, rows)

    def _join_names(self) -> None:
        """Make one image of those that are the same photo under several names; of several splits, they are noted."""
        first: dict[ImageRef, str] = {}
        joined, shared = [], 0
        for key, entry in self._images.items():
            other = self._images[first.setdefault(entry.image, key)]
            if other.split != entry.split:
                shared += 1
            elif other is not entry:
                other.captions += entry.captions
                joined.append(key)
        for key in joined:
            del self._images[key]
        self.note_count(len(joined), "name", "of a photo that has another name here too: joined")
        self.note_count(shared, "photo", "in two splits, under different names")

    def _split(self, records: list[Record], config: SourceConfig) -> list[Record]:
        own = Counter(record.split for record in records)
        if config.train_size is None:
            return records
        if set(own) == {None}:
            return split_records(records, config.train_size, config.seed)
        counts = ", ".join(f"{split} {count:,}" for split, count in own.items())
        raise ClipcapError(
            f"--train_size: leave it out: this set has its own splits ({counts} images), and they are used"
        )
