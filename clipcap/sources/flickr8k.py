"""Flickr8k: captions.txt or Flickr8k.token.txt, and its official split lists where they are there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import Photos, inside, photo_folders, require_folder
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources.collector import Collector, Source
from clipcap.sources.config import SourceConfig
from clipcap.sources.tables import read_table
from clipcap.sources.textfiles import read_lines

CAPTION_FILES = ("captions.txt", "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt")
PHOTO_FOLDERS = ("Images", "Flicker8k_Dataset", "Flickr8k_Dataset")
SPLIT_LISTS = {"trainImages": "train", "devImages": "val", "testImages": "test"}
_TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#[0-9]+\t(?P<caption>.*)", re.DOTALL)


def read(config: SourceConfig) -> Source:
    """Read a Flickr8k folder; where its split lists are there, only the images they name are taken."""
    root = require_folder(config.data_path, "--data_path")
    captions = Path(config.captions) if config.captions else _caption_file(root)
    photos = Photos(photo_folders(root, PHOTO_FOLDERS, config.images))
    splits = _official_splits([captions.parent, root, root / "Flickr8k_text"])
    collector = Collector("flickr8k")
    captioned = set()
    for name, caption in _captions(captions):
        captioned.add(name)
        if not splits or name in splits:
            collector.add(name, ImageRef(photos.find(inside(name, captions))), [caption], splits.get(name))
    if splits:
        collector.note_count(len(captioned - set(splits)), "image", "left out: in none of the split lists")
        collector.note_without_caption(len(set(splits) - captioned), "image", "in a split list, but not captioned")
    return collector.finish(config)


def _caption_file(root: Path) -> Path:
    for name in CAPTION_FILES:
        if (root / name).is_file():
            return root / name
    raise ClipcapError(f"{shown(root)}: no caption file ({', '.join(CAPTION_FILES)}): give --captions FILE")


def _official_splits(folders: Iterable[Path]) -> dict[str, str]:
    """Split of each image that the lists name; empty without lists."""
    splits: dict[str, str] = {}
    for kind, split in SPLIT_LISTS.items():
        paths = [folder / f"Flickr_8k.{kind}.txt" for folder in folders]
        path = next((path for path in paths if path.is_file()), None)
        names = [name for line in read_lines(path) if (name := line.strip())] if path else []
        for name in names:
            if splits.setdefault(name, split) != split:
                raise ClipcapError(f"{shown(path)}: {shown(name)} is in the list of split {splits[name]} too")
    return splits


def _captions(path: Path) -> Iterator[tuple[str, str]]:
    """(image name, caption) of each caption, from either of the two formats."""
    if "\t" not in next(read_lines(path), ""):
        for _, (name, caption) in read_table(path).rows("image", "caption"):
            yield name.strip(), caption
        return
    for number, line in enumerate(read_lines(path), 1):
        match = _TOKEN_LINE.fullmatch(line)
        if match:
            yield match["name"], match["caption"]
        elif line.strip():
            raise ClipcapError(f"{shown(path)}: line {number} is not of the form name.jpg#0<TAB>caption")
