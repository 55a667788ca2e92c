"""The table of readers: the name of a source → the function that reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from clipcap.sources import coco, conceptual, custom, flickr8k, food, photos
from clipcap.sources.collector import Source
from clipcap.sources.config import SourceConfig

READERS: dict[str, Callable[[SourceConfig], Source]] = {
    "food": food.read,
    "coco": coco.read,
    "flickr8k": flickr8k.read,
    "conceptual": conceptual.read,
    "custom": custom.read,
    "photos": photos.read,
}


def read_source(name: str, config: SourceConfig) -> Source:
    """Read the set of a source, or the first --limit images of each of its splits."""
    source = READERS[name](config)
    if not config.limit:
        return source
    seen: Counter[str | None] = Counter()
    records = []
    for record in source.records:
        if seen[record.split] < config.limit:
            records.append(record)
        seen[record.split] += 1
    return replace(source, records=records)
