"""The Kaggle food set: Captions.csv (unnamed index, Index, Captions) and the photos <Index>.jpg."""

from __future__ import annotations

from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import photo_folders, require_folder
from clipcap.images.photos import Photos
from clipcap.runtime.text import shown
from clipcap.sources.cells import captions_in
from clipcap.sources.collector import Collector, Source
from clipcap.sources.config import SourceConfig
from clipcap.sources.rows import add_row
from clipcap.sources.split_lists import use_lists_beside
from clipcap.sources.tables import read_table


def read(config: SourceConfig) -> Source:
    """Read --data_path/Captions.csv (or --captions); photos in dataset/ or images/ (or --images)."""
    root = require_folder(config.data_path, "--data_path")
    captions = Path(config.captions) if config.captions else root / "Captions.csv"
    if not config.captions and not captions.is_file():
        raise ClipcapError(f"{shown(root)}: no Captions.csv here: give --captions FILE, or another --data_path")
    photos = Photos(photo_folders(root, ("dataset", "images"), config.images))
    collector = Collector("food")
    nameless = 0
    rows = read_table(captions).rows("Index", "Captions", faults=collector.faults, notes=collector.remarks)
    for where, (index, caption) in rows:
        name = str(index).strip()
        if name:
            add_row(collector, where, photos, [name], name, captions_in(caption, collector.remarks))
        nameless += not name
    collector.note_nameless(nameless, "no Index")
    collector.note_photos(photos)
    use_lists_beside(collector, [root], [captions])
    return collector.finish(config)
