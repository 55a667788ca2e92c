"""Captions of a set, gathered into one sorted record per image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.images.folders import in_natural_order
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources.config import SourceConfig
from clipcap.sources.record import Record
from clipcap.sources.split import split_by_image

_SPLITS = {"restval": "train", "dev": "val", "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class Source:
    """An image-caption set: records sorted by image id, and remarks worth printing, one line each."""

    name: str
    records: list[Record]
    notes: list[str]
    without_caption: int = 0  # images left out


def clean_caption(text: str) -> str:
    """One line of text: every run of white space (also \\r, \\v, \\f, U+2028, NUL) becomes one blank.

    Half surrogates, which JSON can smuggle in and no file or tokenizer takes, are removed.
    """
    return " ".join(text.replace("\0", " ").encode("utf-8", "ignore").decode("utf-8").split())


def caption_texts(value: Any, where: str) -> list[str]:
    """The captions in one cell: a text, a list of texts, or nothing (None, NaN)."""
    values = value if isinstance(value, (list, tuple)) else [value]
    for part in values:
        if isinstance(part, (dict, list, tuple, bytes)):
            raise ClipcapError(f"{where}: a caption is a text or a list of texts, here it is a {type(part).__name__}")
    return ["" if part is None or part != part else str(part) for part in values]


def caption_lines(text: str) -> list[str]:
    """The captions in a text file beside an image: one on each line that is not blank."""
    return [line for line in text.split("\n") if line.strip()] or [""]


def split_name(name: str, where: str) -> str:
    """train, val or test for a set's own word for it (restval, dev, validation, ...)."""
    split = _SPLITS.get(name.lower(), name.lower())
    if split not in ("train", "val", "test"):
        raise ClipcapError(f"{where}: unknown split '{shown(name)}' (known: train, val, test, {', '.join(_SPLITS)})")
    return split


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
        self._without_caption = 0

    def note(self, text: str) -> None:
        """Add a remark for the user."""
        self._notes.append(text)

    def note_count(self, count: int, noun: str, remark: str) -> None:
        """Add a remark on a number of things, where there are any."""
        if count:
            self.note(f"{count:,} {noun}{'s' * (count != 1)} {remark}")

    def note_without_caption(self, count: int, noun: str, why: str) -> None:
        """Add a remark on images that are left out for want of a caption; they are counted in the `Source`."""
        self.note_count(count, noun, f"left out: {why}")
        self._without_caption += count

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

    def finish(self, config: SourceConfig) -> Source:
        """The source, split by image if the set has no split of its own and --train_size asks for one."""
        self.note_count(self._empty, "empty caption", "dropped")
        images = self._images
        without = [key for key, entry in images.items() if not entry.captions]
        for key in without:
            del images[key]
        self.note_without_caption(len(without), "image", "no caption")
        if not images:
            where = shown(config.captions or config.data_path)
            raise ClipcapError("; ".join([f"{where}: no image with a caption", *self._notes]))
        records = []
        for key in in_natural_order(images):
            entry = images.pop(key)  # a set of millions is not to be there twice
            records.append(Record(key, entry.image, tuple(entry.captions), entry.split))
        return Source(self._name, self._split(records, config), self._notes, self._without_caption)

    def _split(self, records: list[Record], config: SourceConfig) -> list[Record]:
        own = Counter(record.split for record in records)
        if config.train_size is None:
            return records
        if set(own) == {None}:
            return split_by_image(records, config.train_size, config.seed)
        counts = ", ".join(f"{split} {count:,}" for split, count in own.items())
        raise ClipcapError(
            f"--train_size: leave it out: this set has its own splits ({counts} images), and they are used"
        )
