"""Anybody's data: a table, a folder of photos with a text beside each, or webdataset tars."""

from __future__ import annotations

import os
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import Photos, is_image_name, list_folder, photo_folders, require_folder, walk
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources import tars
from clipcap.sources.collector import Collector, Source, caption_lines, caption_texts, split_name
from clipcap.sources.columns import choose_columns
from clipcap.sources.config import SourceConfig
from clipcap.sources.tables import TABLE_SUFFIXES, read_table
from clipcap.sources.textfiles import read_lines

PHOTO_FOLDERS = ("images", "photos", "dataset", "gifs")
_USUAL_NAMES = ("captions", "metadata", "annotations")  # told apart from other tables in the same folder


def read(config: SourceConfig) -> Source:
    """Read --data_path, whatever it is: a table, a folder, a tar or a pattern of tars."""
    collector = Collector("custom")
    path = config.captions or config.data_path
    if tars.is_tar_pattern(path):
        tars.add_tars(collector, tars.find_tars(path))
    elif os.path.isfile(path) or config.captions:
        _add_table(collector, Path(path), config)
    else:
        _add_folder(collector, require_folder(path, "--data_path"), config)
    return collector.finish(config)


def _add_folder(collector: Collector, folder: Path, config: SourceConfig) -> None:
    """A table in the folder comes first, then tars, then photos with texts."""
    names = list_folder(folder)[1]
    table = _pick_table(folder, names)
    shards = [folder / name for name in names if tars.is_tar_pattern(name)]
    if table:
        collector.note(f"captions from {shown(table)}")
        _add_table(collector, table, config)
    elif shards:
        tars.add_tars(collector, shards)
    else:
        _add_texts(collector, folder)


def _pick_table(folder: Path, names: list[str]) -> Path | None:
    """The table of a folder. Files called like a photo are its caption; of other .txt only captions.txt counts."""
    stems = {os.path.splitext(name)[0] for name in names if is_image_name(name)}
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]
    tables = [name for name in tables if not name.lower().endswith(".txt") or name.lower() == "captions.txt"]
    tables = [name for name in tables if os.path.splitext(name)[0] not in stems]
    usual = [name for name in tables if os.path.splitext(name)[0].lower() in _USUAL_NAMES]
    if len(usual or tables) > 1:
        choice = ", ".join(map(shown, tables))
        raise ClipcapError(f"{shown(folder)}: several tables ({choice}): choose one with --captions FILE")
    return folder / (usual or tables)[0] if tables else None


def _add_table(collector: Collector, path: Path, config: SourceConfig) -> None:
    """Image names are relative to --images, else to the table's folder or its images/; full paths stay as they are.

    A column called `split` is the set's own split.
    """
    table = read_table(path)
    image_column, caption_column, notes = choose_columns(table, config.image_column, config.caption_column)
    for note in notes:
        collector.note(note)
    photos = Photos(photo_folders(path.parent, PHOTO_FOLDERS, config.images))
    has_split = "split" in table.columns
    nameless = 0
    for where, cells in table.rows(image_column, caption_column, *["split"] * has_split):
        name = _image_name(cells[0], where)
        nameless += not name
        if name:
            image = photos.find(name) if is_image_name(name) else photos.find_stem(name)
            split = split_name(str(cells[2]), where) if has_split else None
            collector.add(name, ImageRef(image), caption_texts(cells[1], where), split)
    collector.note_count(nameless, "row", f"left out: nothing in column '{shown(image_column)}'")


def _image_name(value: object, where: str) -> str:
    if isinstance(value, (bytes, dict, list)):
        raise ClipcapError(
            f"{where}: the image column holds a {type(value).__name__}, not a file name; "
            "images inside a table are not read: write them to files or tars"
        )
    return "" if value is None or value != value else str(value).strip()


def _add_texts(collector: Collector, folder: Path) -> None:
    """`x.jpg` takes its captions from `x.txt` beside it, here and in every folder below."""
    files = list(walk(folder))
    texts = {path for path in files if path.suffix.lower() == ".txt"}
    photos = [path for path in files if is_image_name(path.name)]
    if not photos:
        raise ClipcapError(
            f"{shown(folder)}: no photos, tables or tars here; give --captions FILE, or another --data_path"
        )
    lonely = 0
    for photo in photos:
        text = photo.with_suffix(".txt")
        lonely += text not in texts
        if text in texts:
            captions = caption_lines("".join(read_lines(text)))
            collector.add(photo.relative_to(folder).as_posix(), ImageRef(photo), captions)
    collector.note_without_caption(lonely, "photo", "no .txt of the same name")
