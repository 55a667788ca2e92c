"""Photos alone: every image of a folder, without captions, to be embedded and searched."""

from __future__ import annotations

from clipcap.errors import ClipcapError
from clipcap.images.folders import require_folder
from clipcap.images.read import find_images
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources.collector import Source
from clipcap.sources.config import SourceConfig
from clipcap.sources.record import Record


def read(config: SourceConfig) -> Source:
    """Read the photos below --data_path; their ids are their paths from there."""
    root = require_folder(config.data_path, "--data_path")
    if config.train_size is not None:
        raise ClipcapError("--train_size splits captions: photos alone are not trained on")
    records = [Record(path.relative_to(root).as_posix(), ImageRef(path), ()) for path in find_images([str(root)])]
    return Source("photos", records, [f"{len(records):,} photos below {shown(root)}, captions are not read"])
