"""Which column holds the images and which the captions."""

from __future__ import annotations

import itertools
import re

from clipcap.errors import ClipcapError
from clipcap.images.folders import is_image_name
from clipcap.runtime.text import shown
from clipcap.sources.tables import Table

_IMAGE_NAMES = "image file filename file_name image_path filepath file_path path image_file image_name img img_path"
_CAPTION_NAMES = "caption captions text texts caption_text description descriptions sentence sentences title raw"


def choose_columns(table: Table, image: str | None, caption: str | None) -> tuple[str, str, list[str]]:
    """(image column, caption column, remarks): those given, else guessed from names, else from what they hold.

    Raises:
        ClipcapError: a column cannot be guessed; the message lists the columns.
    """
    if any(map(is_image_name, table.columns)):  # a guess from what the rows hold would lose the first one
        raise ClipcapError(f"{shown(table.path)}: no header{table.columns_hint()}")
    guessed = [flag for flag, given in (("image", image), ("caption", caption)) if not given]
    image = image or _named(table, _IMAGE_NAMES) or _holding_images(table)
    rest = [name for name in table.columns if name != image]
    caption = caption or _named(table, _CAPTION_NAMES) or (rest[0] if image and len(rest) == 1 else None)
    if image is None or caption is None:
        flag = "image" if image is None else "caption"
        hint = table.columns_hint()
        raise ClipcapError(f"{shown(table.path)}: cannot tell the {flag} column, give --{flag}_column{hint}")
    note = f"columns: images from '{shown(image)}', captions from '{shown(caption)}'"
    flags = " ".join(f"--{flag}_column" for flag in guessed)
    return image, caption, [f"{note} (guessed; {flags} to change)"] if guessed else []


def _named(table: Table, names: str) -> str | None:
    by_plain_name = {re.sub(r"[\s-]+", "_", column.lower()): column for column in reversed(table.columns)}
    return next((by_plain_name[name] for name in names.split() if name in by_plain_name), None)


def _holding_images(table: Table) -> str | None:
    """The first column whose first rows are mostly names of image files."""
    sample = [cells for _, cells in itertools.islice(table.rows(*table.columns), 100)]
    for i, column in enumerate(table.columns):
        hits = sum(isinstance(cells[i], str) and is_image_name(cells[i]) for cells in sample)
        if hits * 2 > len(sample):
            return column
    return None
