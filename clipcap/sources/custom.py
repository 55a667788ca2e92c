"""Anybody's data: tables, folders of photos with a text beside each, webdataset tars, in whatever make they come."""

from __future__ import annotations

import os
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import list_folder, photo_folders, require_folder
from clipcap.images.photos import Photos
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import shown
from clipcap.sources import coco, folder, split_lists, tars
from clipcap.sources.beside import Pairs, add_pairs, pair
from clipcap.sources.collector import Collector, Source
from clipcap.sources.columns import NoCaptionsError
from clipcap.sources.config import SourceConfig
from clipcap.sources.folder import CaptionTable
from clipcap.sources.names import PHOTO_FOLDERS
from clipcap.sources.rows import Part, add_table
from clipcap.sources.split_lists import PhotoIndex, PhotoList, find_lists, use_folders, use_lists, use_lists_beside
from clipcap.sources.tables import PHOTO_ARCHIVES, how_to_save, read_table


def read(config: SourceConfig) -> Source:
    """Read --data_path, whatever it is: a table, a folder, a tar or a pattern of tars."""
    collector = Collector("custom")
    path = config.captions or config.data_path
    if tars.is_tar_pattern(path) and not os.path.isdir(path):
        tars.add_tars(collector, tars.find_tars(path))
    elif os.path.isfile(path) or config.captions:
        _add_tables(collector, [CaptionTable(Path(path))], Path(path).parent, config)
    else:
        _add_folder(collector, require_folder(path, "--data_path"), config)
    return collector.finish(config)


def _add_folder(collector: Collector, root: Path, config: SourceConfig) -> None:
    """A table in the folder comes first, then tars, then photos with texts, then tables and tars further down."""
    inner = folder.only_folder(root)
    names = list_folder(inner)[1]
    tables = folder.tables_at_top(inner)
    shards = [inner / name for name in names if tars.is_tar_pattern(name)]
    if shards and not tables and not tars.hold_captions(shards[0]):
        tables = folder.tables_called_like(inner, shards)
    if tables:
        _add_tables(collector, tables, inner, config)
        collector.note_count(
            folder.texts_beside(inner), "caption file", "beside a photo not read: a table has captions"
        )
        if others := folder.other_tables(inner, tables):
            collector.note(f"other tables of captions, not read: {', '.join(map(shown, others))} (--captions FILE)")
    elif shards:
        tars.add_tars(collector, shards)
        use_lists_beside(collector, [inner])
    else:
        _add_photos(collector, root, config)


def _add_photos(collector: Collector, root: Path, config: SourceConfig) -> None:
    files = folder.photos_and_texts(root)
    pairs = pair(files, lambda name: folder.is_photo_in(root, name))
    captioned = sum(map(bool, pairs.texts.values()))
    lists = _lists_among(root, files, pairs) if captioned else []
    if captioned * 2 < max(1, len(pairs.texts)):
        if tables := folder.tables_below(root):
            _add_tables(collector, tables, root, config)
            return
        if not pairs.texts and (shards := folder.tars_below(root)):
            tars.add_tars(collector, shards)
            return
    if not pairs.texts:
        hint = folder.packed_hint(files)
        raise ClipcapError(
            f"{shown(root)}: no photos, tables or tars here{hint}; give --captions FILE, or another --data_path"
        )
    add_pairs(collector, pairs, lambda name: ImageRef(root / name), lambda name: root / name, Part())
    use_lists(collector, lists)
    known = {name for found in pairs.texts.values() for name in found} | set(pairs.unused) | set(pairs.texts)
    known |= {one.path.relative_to(root).as_posix() for one in lists}
    if others := folder.other_files([name for name in files if name not in known]):
        collector.note(f"other files, not read: {others}")
    unread = [(name, how_to_save(name)) for name in files] if not captioned else []
    for name, how in [(name, how) for name, how in unread if how][:3]:
        collector.note(f"{shown(name)} is {how}")


def _lists_among(root: Path, files: list[str], pairs: Pairs) -> list[PhotoList]:
    """The lists of photos among files, which no longer count as texts of no photo."""
    read = {name for found in pairs.texts.values() for name in found}
    names = split_lists.candidates(name for name in files if name not in pairs.texts and name not in read)
    photos = PhotoIndex((name, ImageRef(root / name)) for name in pairs.texts) if names else None
    lists = find_lists([root / name for name in names], photos) if photos else []
    found = {one.path for one in lists}
    pairs.unused = [name for name in pairs.unused if root / name not in found]
    return lists


def _add_tables(collector: Collector, tables: list[CaptionTable], root: Path, config: SourceConfig) -> None:
    """Image names are relative to --images, else to the table's folder or its images/; full paths are followed."""
    places: dict[tuple[Path, ...], Photos] = {}
    read: list[CaptionTable] = []
    for one in tables:
        if not config.captions and one.path != Path(config.data_path):
            collector.note(f"captions from {shown(one.path)}")
        found = photo_folders(one.path.parent, PHOTO_FOLDERS, config.images)
        if not config.images and root != one.path.parent:
            found += photo_folders(root, PHOTO_FOLDERS, None)
        photos = places.get(tuple(found)) or _photos(collector, one.path.parent, found)
        places[tuple(found)] = photos
        table = read_table(one.path, collector.faults)
        part = Part(one.prefix, one.split)
        try:
            if coco.is_coco(table.document):
                coco.add_document(collector, one.path, table.document, photos, part)
            else:
                add_table(collector, table, photos, config.image_column, config.caption_column, part)
            read.append(one)
        except NoCaptionsError as error:  # test.csv of a contest, beside train.csv
            if len(tables) == 1:
                raise
            collector.note(f"not read: {error}")
    if len(read) < len(tables) and len({one.split for one in read}) == 1:
        collector.use_splits({}, None)
    for photos in places.values():
        collector.note_photos(photos)
    _find_splits(collector, read, root, config, [place for photos in places.values() for place in photos.places])


def _find_splits(
    collector: Collector, tables: list[CaptionTable], root: Path, config: SourceConfig, places: list[str]
) -> None:
    """The splits that lists of photos say, or the folders in which photos were found."""
    folders = [*(one.path.parent for one in tables), *[root] * (not config.captions)]
    use_lists_beside(collector, folders, [one.path for one in tables])
    if not collector.has_splits:
        use_folders(collector, places, root)


def _photos(collector: Collector, beside: Path, folders: list[Path]) -> Photos:
    """The photos of a table: in folders, else in the tars beside it; what has to be unpacked first is noted."""
    photos = Photos(folders, anywhere=True)
    names = list_folder(beside)[1]
    if not photos.any_there():
        if shards := [beside / name for name in names if name.lower().endswith(".tar")]:
            return tars.photos_in_tars(shards)
        if hint := folder.packed_hint([name for name in names if name.lower().endswith(PHOTO_ARCHIVES)]):
            collector.note(f"no photos here{hint}")
    return photos
