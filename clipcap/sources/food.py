"""The Kaggle food set: Captions.csv (unnamed index, Index, Captions) and the photos <Index>.jpg."""

from __future__ import annotations

from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import Photos, inside, photo_folders, require_folder
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources.collector import Collector, Source
from clipcap.sources.config import SourceConfig
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
    for _, (index, caption) in read_table(captions).rows("Index", "Captions"):
        name = index.strip()
        if name:
            image = ImageRef(photos.find_stem(inside(name, captions)))
            collector.add(name, image, [caption])
        nameless += not name
    collector.note_count(nameless, "row", "left out: no Index")
    return collector.finish(config)
