"""Flickr8k: captions.txt or Flickr8k.token.txt, and its official split lists, if present."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import photo_folders, require_folder
from clipcap.images.photos import PhotoNameError, Photos
from clipcap.runtime.text import shown
from clipcap.sources.cells import captions_in
from clipcap.sources.collector import Collector, Source
from clipcap.sources.columns import choose_columns
from clipcap.sources.config import SourceConfig
from clipcap.sources.rows import add_row
from clipcap.sources.split_lists import use_lists_beside
from clipcap.sources.tables import read_table
from clipcap.sources.textfiles import read_lines

CAPTION_FILES = (
    "captions.txt", "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "results.csv", "results_20130124.token",
)  # fmt: skip
PHOTO_FOLDERS = (
    "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k_images", "flickr30k-images", "Flickr30k_Images",
)  # fmt: skip
SPLIT_LISTS = {"trainImages": "train", "devImages": "val", "testImages": "test"}
_TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#[0-9]+\t(?P<caption>.*)", re.DOTALL)


def read(config: SourceConfig) -> Source:
    """Read a Flickr8k folder; with split lists present, only the images that they name."""
    root = require_folder(config.data_path, "--data_path")
    captions = Path(config.captions) if config.captions else _caption_file(root)
    photos = Photos(photo_folders(root, PHOTO_FOLDERS, config.images))
    splits = _official_splits([captions.parent, root, root / "Flickr8k_text"])
    collector = Collector("flickr8k")
    captioned = set()
    for where, name, texts in _captions(captions, collector):
        captioned.add(name)
        if not splits or name in splits:
            add_row(collector, where, photos, [name], name, texts, splits.get(name))
    if splits:
        unlisted, silent = captioned - set(splits), set(splits) - captioned
        for name in (*unlisted, *silent):
            with suppress(PhotoNameError):
                photos.find(name)  # not to be counted as a photo that nothing names
        collector.leave_out(len(unlisted), "image", "in none of the split lists", "in none of the split lists")
        collector.leave_out(len(silent), "image", "in a split list, but not captioned")
    collector.note_photos(photos)
    if not splits:
        use_lists_beside(collector, [captions.parent, root], [captions])
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


def _captions(path: Path, collector: Collector) -> Iterator[tuple[str, str, list[str]]]:
    """(where, image name, captions) of each row, from either of the two formats; broken rows are counted."""
    if "\t" not in next(read_lines(path), ""):
        table = read_table(path, collector.faults)
        columns = choose_columns(table, None, None)
        if columns.image is None:
            raise ClipcapError(f"{shown(path)}: no column names the images: add a column image")
        rows = table.rows(columns.image, *columns.captions, faults=collector.faults, notes=collector.remarks)
        for where, (name, *cells) in rows:
            yield where, str(name).strip(), [text for cell in cells for text in captions_in(cell, collector.remarks)]
        return
    for number, line in enumerate(read_lines(path), 1):
        where = f"{shown(path)}: line {number}"
        match = _TOKEN_LINE.fullmatch(line)
        if match:
            yield where, match["name"], [match["caption"]]
        elif line.strip():
            collector.faults.add(where, "is not of the form name.jpg#0<TAB>caption")
