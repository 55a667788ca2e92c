"""Photos with true labels, read from a table or from a folder with one subfolder per label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import photo_folders, walk
from clipcap.images.kinds import is_image_name
from clipcap.images.photos import Photos
from clipcap.sources.columns import choose_columns
from clipcap.sources.tables import Table, read_table

_LABEL_NAMES = ("label", "labels", "class", "category", "target", "food")
_PHOTO_FOLDERS = ("images", "photos", "dataset")


@dataclass(frozen=True)
class Labelled:
    """A photo and its true label; None if unknown."""

    path: Path
    label: str | None = None


def read_labelled(name: str, flag: str, image_column: str | None, label_column: str | None) -> list[Labelled]:
    """Photos with labels.

    Args:
        name: a table (CSV, TSV, JSON, JSON Lines, Parquet) or a folder.
        flag: names the option in errors.
        image_column, label_column: of a table; guessed where None.
    Raises:
        ClipcapError: the table or folder is missing, holds no photos, or its columns cannot be guessed.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = [Labelled(photo, photo.parent.name) for photo in walk(path) if is_image_name(photo.name)]
        found = [photo for photo in found if photo.path.parent != path]
        if not found:
            raise ClipcapError(f"{flag} {name}: no subfolders with photos (one subfolder per label)")
        return found
    if not path.is_file():
        raise ClipcapError(f"{flag} {name}: no such file or folder")
    table = read_table(path)
    label_column = label_column or _label_column(table, flag)
    image_column = choose_columns(table, image_column, label_column).image
    if image_column is None:
        raise ClipcapError(f"{flag} {name}: cannot guess the image column: give --image_column{table.columns_hint()}")
    photos = Photos(photo_folders(path.parent, _PHOTO_FOLDERS, None), anywhere=True)
    rows = [(str(image).strip(), str(label).strip()) for _, (image, label) in table.rows(image_column, label_column)]
    found = [Labelled(photos.find(image), label) for image, label in rows if image and label]
    if not found:
        raise ClipcapError(f"{flag} {name}: no rows with an image and a label")
    return found


def checked_labels(labels: Sequence[str]) -> list[str]:
    """Labels without blanks around them.

    Raises:
        ClipcapError: none, or one twice.
    """
    found = [label.strip() for label in labels if label.strip()]
    double = next((label for label in found if found.count(label) > 1), None)
    if double or not found:
        raise ClipcapError(
            f"--labels: {double!r} is given twice" if double else "--labels is missing: a,b,c or a file"
        )
    return found


def _label_column(table: Table, flag: str) -> str:
    for name in _LABEL_NAMES:
        for column in table.columns:
            if column.lower() == name:
                return column
    raise ClipcapError(
        f"{flag} {table.path}: cannot guess the label column: give --label_column{table.columns_hint()}"
    )
