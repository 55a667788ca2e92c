"""Folders as people have them: tables at the top or in each split's folder, tars, photos with texts beside them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import counted_suffixes, list_folder, photo_folders, walk
from clipcap.images.kinds import is_image_name
from clipcap.images.photos import Photos
from clipcap.images.read import is_image_file
from clipcap.runtime.text import shown
from clipcap.sources import coco, tars
from clipcap.sources.beside import CAPTION_SUFFIXES
from clipcap.sources.columns import choose_columns, holds_image
from clipcap.sources.faults import Faults
from clipcap.sources.names import PHOTO_FOLDERS, SPLIT_WORDS, TAGS, plain, split_in, without_digits
from clipcap.sources.tables import PACKED_SUFFIXES, TABLE_SUFFIXES, TEXT_SUFFIXES, Table, read_table

MAX_DEPTH = 3  # folders below the set's own in which tables are looked for
_USUAL_NAMES = ("captions", "metadata", "annotations")  # distinguished from other tables in the same folder
_TEXT_TABLES = re.compile(
    r"(?:captions?|metadata|annotations?|results(_\w+)?|.*\.token)\.(?:txt|md|tex|dat)|.*\.token"
)
# What Kaggle, the hub, img2dataset and this program leave beside captions.
_NO_CAPTIONS = re.compile(
    r"dataset-metadata\.json|dataset_infos?\.json|dataset_dict\.json|state\.json|.*_stats\.json|croissant.*\.json|"
    r"(?:readme|licen[sc]es?|credits?|attributions?|authors?|notice|changelog)\..*|download_errors\.csv|"
    r".*_errors\.csv|package\.json|config\.json|kaggle\.json"
)
_MOST_TEXTS = 20  # texts in a folder that are looked into
_SHARD = re.compile(r".*-\d+-of-\d+.*|\d+|.*(?:part|shard|chunk)[-_.]?\d+.*|.*\d{5,}.*")


@dataclass(frozen=True)
class CaptionTable:
    """A table of a set: where it is, and what of its place says to which split its images belong."""

    path: Path
    prefix: str = ""
    split: str | None = None


def tables_at_top(folder: Path) -> list[CaptionTable]:
    """The tables of captions in a folder itself: one, or the shards or splits of one set.

    Raises:
        ClipcapError: there are several that do not belong together.
    """
    candidates = _candidates(folder)
    if len(candidates) > 1 and not _belong_together(candidates):
        usual = [name for name in candidates if os.path.splitext(name)[0].lower() in _USUAL_NAMES]
        candidates = usual if len(usual) == 1 else [n for n in candidates if holds_captions(folder / n)] or candidates
        if not _belong_together(candidates):  # captions_train.csv beside concepts_train.csv
            candidates = [name for name in candidates if "caption" in name.lower()] or candidates
        if len(candidates) > 1 and not _belong_together(candidates):
            choice = ", ".join(map(shown, candidates))
            raise ClipcapError(f"{shown(folder)}: several tables ({choice}): choose one with --captions FILE")
    elif len(candidates) == 1:
        texts = texts_beside(folder)
        sure = _known(candidates[0]) and not texts
        path = folder / candidates[0]
        if not sure and not holds_captions(path, unless_json=not texts, unless_tags=bool(texts)):
            return []
    splits = {name: split_in(name) for name in candidates}
    several = len(set(splits.values())) > 1
    prefixes = {name: f"{os.path.splitext(name)[0]}/" if len(candidates) > 1 else "" for name in candidates}
    return [CaptionTable(folder / n, prefixes[n], splits[n] if several else None) for n in candidates]


def other_tables(folder: Path, read: list[CaptionTable]) -> list[str]:
    """The tables of captions in a folder itself beside those that are read."""
    names = [name for name in _candidates(folder) if folder / name not in [one.path for one in read]]
    return [name for name in names if holds_captions(folder / name)]


def texts_beside(folder: Path) -> int:
    """The number of caption files in a folder itself that have the name of a photo beside them."""
    names = list_folder(folder)[1]
    photos = {os.path.splitext(name)[0].lower() for name in names if is_image_name(name)}
    texts = [name for name in names if name.lower().endswith(CAPTION_SUFFIXES)]
    return sum(os.path.splitext(name)[0].lower() in photos for name in texts)


def tables_called_like(folder: Path, tars: list[Path]) -> list[CaptionTable]:
    """The tables of captions beside tars that have their names, as `train.jsonl` beside `train.tar`."""
    stems = {tar.stem.lower() for tar in tars}
    names = [name for name in list_folder(folder)[1] if os.path.splitext(name)[0].lower() in stems]
    tables = [
        folder / name for name in names if name.lower().endswith(TABLE_SUFFIXES) and holds_captions(folder / name)
    ]
    several = len({split_in(table.stem) for table in tables}) > 1
    return [
        CaptionTable(table, f"{table.stem}/" * (len(tables) > 1), split_in(table.stem) if several else None)
        for table in tables
    ]


def _known(name: str) -> bool:
    """Whether a table can be nothing but captions, so that its errors are the user's to see."""
    return not name.lower().endswith(".json") or os.path.splitext(name)[0].lower() in _USUAL_NAMES


def tables_below(folder: Path) -> list[CaptionTable]:
    """The tables of captions in folders below: of splits, of classes, or one in a folder of its own.

    Raises:
        ClipcapError: there are several that do not belong together.
    """
    found: list[CaptionTable] = []
    for below in _folders_below(folder):
        relative = below.relative_to(folder).as_posix()
        split = next((SPLIT_WORDS[p.lower()] for p in relative.split("/") if p.lower() in SPLIT_WORDS), None)
        names = [name for name in _candidates(below) if holds_captions(below / name)]
        for name in names:
            stem = f"{os.path.splitext(name)[0]}/" if len(names) > 1 else ""
            found.append(CaptionTable(below / name, f"{relative}/{stem}", split or split_in(name)))
    places = {table.path.parent for table in found}
    alone = len(places) == 1 and _belong_together([table.path.name for table in found])
    own = all(_holds_photos(place) or split_in(place.name) for place in places)
    if len(found) > 1 and not alone and not own:
        choice = ", ".join(shown(table.path.relative_to(folder)) for table in found[:10])
        raise ClipcapError(f"{shown(folder)}: several tables ({choice}): choose one with --captions FILE")
    if len({table.split for table in found}) <= 1:
        found = [CaptionTable(table.path, table.prefix, None) for table in found]
    return [CaptionTable(table.path, "", None) for table in found] if len(found) == 1 else found


def tars_below(folder: Path) -> list[Path]:
    """Tars in the folders below."""
    return [
        below / name
        for below in _folders_below(folder)
        for name in list_folder(below)[1]
        if tars.is_tar_pattern(name)
    ]


def _folders_below(folder: Path) -> Iterator[Path]:
    pending = [(folder / name, 1) for name in list_folder(folder)[0]]
    while pending:
        here, depth = pending.pop(0)
        yield here
        if depth < MAX_DEPTH:
            pending += [(here / name, depth + 1) for name in list_folder(here)[0]]


def _candidates(folder: Path) -> list[str]:
    """Files that may be tables of captions. Those called like a photo, a tar or a folder say what is in it."""
    folders, names = list_folder(folder)
    stems = {os.path.splitext(name)[0].lower() for name in names if is_image_name(name) or tars.is_tar_pattern(name)}
    stems |= {name.lower() for name in names if is_image_name(name)} | {f for f in folders if f.isdigit()}
    tables = [
        name for name in names if name.lower().endswith(TABLE_SUFFIXES) and not _NO_CAPTIONS.fullmatch(name.lower())
    ]
    tables = [name for name in tables if not _is_of_one(name.lower(), stems)]
    texts = [name for name in tables if name.lower().endswith(TEXT_SUFFIXES)]
    named = [name for name in texts if _is_text_table(name)]
    if (
        not named and len(texts) == len(tables) and len(texts) <= _MOST_TEXTS
    ):  # any name: look whether it names images
        named = [name for name in texts if holds_captions(folder / name)]
    return [name for name in tables if name not in texts or name in named]


def _is_of_one(name: str, stems: Container[str]) -> bool:
    """Whether a name is that of a photo, a tar or a folder with more behind it: `1.json`, `1.jpg.metadata.json`."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in stems for count in range(1, len(parts)))


def _is_text_table(name: str) -> bool:
    return _TEXT_TABLES.fullmatch(name.lower()) is not None


def _belong_together(names: list[str]) -> bool:
    """Whether tables are shards or splits of one set: alike but for words that name splits, and numbers of shards."""
    alike = {
        re.sub("|".join(sorted(SPLIT_WORDS, key=len, reverse=True)), "#", without_digits(name)) for name in names
    }
    stems = [os.path.splitext(name)[0] for name in names]
    splits = [split_in(stem) for stem in stems]
    shards = all(map(_SHARD.fullmatch, stems))
    return len(alike) == 1 and (shards or (all(splits) and len(set(splits)) == len(names)))


def holds_captions(path: Path, unless_json: bool = False, unless_tags: bool = False) -> bool:
    """Whether a table has columns of images and captions.

    Args:
        unless_json: errors in tables other than JSON count as yes.
        unless_tags: a column of labels or tags counts as no.
    """
    try:
        table = read_table(path, Faults())
        if coco.is_coco(table.document):
            return coco.holds_captions(table.document)
        columns = choose_columns(table, None, None)
        if isinstance(table.document, dict) and columns.image is not None and not _names_photos(table, columns.image):
            return False
        if unless_tags and all(plain(name) in TAGS for name in columns.captions):
            return False
    except ClipcapError:
        return unless_json and not str(path).lower().endswith(".json")
    return True


def _names_photos(table: Table, column: str) -> bool:
    """Whether some of the first rows name an image, or an existing photo: any object maps words to words."""
    photos = Photos(photo_folders(Path(str(table.path)).parent, PHOTO_FOLDERS, None), anywhere=True)
    first = (cells[0] for _, cells in itertools.islice(table.rows(column), 20))
    return any(holds_image(cell, photos.knows) for cell in first)


def _holds_photos(folder: Path) -> bool:
    return any(is_image_name(path.name) for path in walk(folder))


def only_folder(folder: Path) -> Path:
    """The folder itself, or the one below that holds all there is, as archives unpack to."""
    while True:
        folders, names = list_folder(folder)
        rest = [name for name in names if not _NO_CAPTIONS.fullmatch(name.lower())]
        if len(folders) != 1 or rest:
            return folder
        folder = folder / folders[0]


def photos_and_texts(folder: Path) -> list[str]:
    """Every file below a folder but those that say what the set is, by its path from there with slashes."""
    files = (
        path.relative_to(folder).as_posix() for path in walk(folder) if not _NO_CAPTIONS.fullmatch(path.name.lower())
    )
    return list(files)


def is_photo_in(folder: Path, name: str) -> bool:
    """Whether a file below a folder is an image, by its suffix, or by its first bytes where it has none."""
    return is_image_file(folder / name)


def packed_hint(names: list[str]) -> str:
    """What to do with archives, where a folder holds nothing else; empty without archives."""
    packed = [name for name in names if name.lower().endswith(PACKED_SUFFIXES)]
    return f"; unpack or convert first: {', '.join(map(shown, packed[:5]))}" if packed else ""


def other_files(names: list[str]) -> str:
    """Files that are neither photos nor captions, counted by suffix; empty if all are."""
    return counted_suffixes(names) if names else ""
