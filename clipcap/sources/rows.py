"""The rows of a table as captions of images: names looked up, images in cells addressed, broken rows counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.images.photos import PhotoLinkError, PhotoNameError, Photos
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import in_short, shown
from clipcap.sources.cells import NUMBERS, are_boxes, captions_in, image_in, image_in_conversation
from clipcap.sources.collector import Collector
from clipcap.sources.columns import Columns, NoCaptionsError, choose_columns
from clipcap.sources.faults import RowError
from clipcap.sources.tables import Table

LINKS = "a link in place of a file"
NOT_FETCHED = "not downloaded"
_INPUT_FORMATS = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class Part:
    """How a table's images belong to the set it is a part of."""

    prefix: str = ""  # of image ids, where several tables make one set
    split: str | None = None  # of all of its images, where the table does not say


def add_table(
    collector: Collector,
    table: Table,
    photos: Photos,
    image_column: str | None = None,
    caption_column: str | None = None,
    part: Part = Part(),
) -> None:
    """Add every row that can be used; the others are counted in the collector's faults.

    Raises:
        ClipcapError: the columns cannot be guessed.
    """
    try:
        columns = choose_columns(table, image_column, caption_column, photos.knows)
    except ClipcapError as error:
        kind = NoCaptionsError if isinstance(error, NoCaptionsError) else ClipcapError
        raise kind("; ".join([str(error), *collector.faults.notes()])) from error
    if columns.note:
        collector.note(columns.note)
    links_before = photos.links
    reader = _RowReader(collector, table, photos, columns, part)
    wanted = columns.wanted
    rows = table.rows(*wanted, faults=collector.faults, notes=collector.remarks)
    for number, (where, cells) in enumerate(rows):
        try:
            reader.add(number, where, dict(zip(wanted, cells)))
        except PhotoLinkError as error:
            collector.faults.add(where, error, LINKS)
        except PhotoNameError as error:
            collector.faults.add(where, error, "not a file name inside the folder of the photos")
        except RowError as error:
            collector.faults.add(where, error)
    nothing = (
        f"nothing in column '{shown(columns.image)}'" if columns.image is not None else "no image in the messages"
    )
    collector.note_nameless(reader.nameless, nothing)
    collector.leave_out(reader.not_fetched, "image", "its download failed (column 'status')", NOT_FETCHED)
    if photos.links > links_before:
        collector.note(_how_to_fetch(table, columns, photos.links - links_before))


def add_row(
    collector: Collector,
    where: str,
    photos: Photos,
    names: Sequence[str],
    image_id: str,
    captions: list[str],
    split: str | None = None,
) -> None:
    """Add the captions of a photo that goes by one of `names`; where none can be a file's, the row is at fault."""
    try:
        photo = ImageRef(photos.find(*names))
    except PhotoNameError as error:
        collector.faults.add(where, error, "not a file name inside the folder of the photos")
        return
    collector.add(image_id, photo, captions, split)


class _RowReader:
    """Adds rows of one table to a collector."""

    def __init__(self, collector: Collector, table: Table, photos: Photos, columns: Columns, part: Part):
        self._collector, self._table, self._photos, self._columns, self._part = (
            collector,
            table,
            photos,
            columns,
            part,
        )
        self.nameless = self.not_fetched = 0

    def add(self, number: int, where: str, row: dict[str, Any]) -> None:
        """Add a row.

        Raises:
            RowError: it cannot be used.
            PhotoNameError: its image's name can be no file's.
        """
        columns, collector = self._columns, self._collector
        image = self._image(row)
        if columns.status and row[columns.status] not in ("success", None, "") and not isinstance(image, bytes):
            self.not_fetched += 1
            return
        if not image:
            self.nameless += 1
            return
        captions = [text for name in columns.captions for text in self._captions(name, row[name])]
        if are_boxes(captions):
            raise RowError(f"its caption is of {NUMBERS}: {in_short(captions[0], 40)}", f"a caption of {NUMBERS}")
        split = columns.marks.split_of(row, self._part.split)
        if mark := columns.marks.unusable_by(row):
            collector.unusable[mark] += sum(map(bool, captions))
            captions = []
        image_id, ref = self._place(number, image, row)  # last, so that a photo of a broken row counts as unused
        collector.add(self._part.prefix + image_id, ref, captions, split)

    def _captions(self, column: str, cell: Any) -> list[str]:
        remarks, sign = self._collector.remarks, self._columns.separators.get(column)
        if sign is None or not isinstance(cell, str) or sign not in cell:
            return captions_in(cell, remarks)
        parts = [part for part in cell.split(sign) if part.strip()]
        where = "line ends" if sign == "\n" else f"'{sign}'"
        remarks[f"cells with several captions, split at {where}"] += 1
        return [text for part in parts for text in captions_in(part, remarks)]

    def _image(self, row: dict[str, Any]) -> str | bytes | None:
        if self._columns.image is not None:
            return image_in(row[self._columns.image])
        talks = (image_in_conversation(row[name]) for name in self._columns.captions)
        return next(filter(None, talks), None)

    def _place(self, number: int, image: str | bytes, row: dict[str, Any]) -> tuple[str, ImageRef]:
        """(image id, where the image lies)."""
        if isinstance(image, str):
            folder = row[self._columns.folder] if self._columns.folder is not None else None
            if isinstance(folder, str) and folder.strip() and not re.search(r"[/\\]", image):
                whole = f"{folder.strip()}/{image}"
                return whole, self._photos.place(whole, image)
            return image, self._photos.place(image)
        label, path = f"{number:08d}", Path(str(self._table.path))
        if self._columns.image in self._table.image_columns:
            return label, ImageRef(path, f"row {number + 1}", number, column=self._columns.image)
        return label, ImageRef(path, f"row {number + 1}", data=image)


def _how_to_fetch(table: Table, columns: Columns, links: int) -> str:
    if columns.image is None:
        return f"{links:,} links in the messages: fetch their pictures, and write their names in place of the links"
    name = str(table.path)
    kind = _INPUT_FORMATS.get(Path(name).suffix.lower(), "csv")
    caption = columns.captions[0]
    return (
        f"{links:,} links in column '{shown(columns.image)}': img2dataset fetches their pictures, --url_list "
        f"'{shown(name)}' --input_format {kind} --url_col '{shown(columns.image)}' --caption_col '{shown(caption)}' "
        f"--output_format webdataset --output_folder pictures; then parse that folder"
        + "; it wants a header line, which this table lacks"
        * table.headless
    )
