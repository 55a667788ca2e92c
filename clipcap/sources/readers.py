"""Readers of image-caption sets: each turns files as they are distributed into sorted records."""

from __future__ import annotations

from collections.abc import Callable

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
