"""Which column holds the images and which the captions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from clipcap.errors import ClipcapError
from clipcap.images.photos import is_link
from clipcap.runtime.text import shown
from clipcap.sources.cells import SEVERAL_IMAGES, captions_in, image_in, image_in_conversation
from clipcap.sources.delimited import is_data
from clipcap.sources.faults import RowError
from clipcap.sources.marks import Marks, find_marks, holds_flags
from clipcap.sources.names import (
    CAPTION_NAMES,
    CONVERSATIONS,
    FOLDER_NAMES,
    ID_NAMES,
    IMAGE_NAMES,
    NUMBER,
    TAGS,
    caption_family,
    column_family,
    plain,
    split_word,
)
from clipcap.sources.tables import Table

_SAMPLE_ROWS = 100
_SENTENCE_WORDS = 3
_SEPARATORS = ("|||", "||", "&&", "|", "<sep>", "[SEP]", "###", " // ", ";")
_WORD = re.compile(r"(?:(?!\d)\w)\S*")
_FEWEST_LISTS, _USUAL = 3, 0.7  # cells with a separator, and their share


class NoCaptionsError(ClipcapError):
    """A table without a column of captions."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table of images and captions."""

    image: str | None  # None: in the messages of a conversation
    captions: list[str]
    folder: str | None  # of the image's folder, where its name lacks it
    marks: Marks
    status: str | None  # of img2dataset: success, or why there is no image
    note: str | None
    separators: dict[str, str]  # between the captions in a cell, of caption columns that have one

    @property
    def wanted(self) -> list[str]:
        """All of them, each once."""
        named = [self.image, *self.captions, self.folder, *self.marks.columns, self.status]
        return list(dict.fromkeys(name for name in named if name is not None))


def choose_columns(
    table: Table, image: str | None, caption: str | None, is_photo: Callable[[str], bool] = lambda name: False
) -> Columns:
    """The columns given, else guessed from names, else from what they hold.

    Args:
        is_photo: whether a photo of that name exists.
    Raises:
        ClipcapError: a column cannot be guessed; the message lists the columns.
    """
    for name in [image, *_listed(table, caption)] if caption else [image]:
        if name and name not in table.columns:
            raise ClipcapError(f"{shown(table.path)}: no column '{shown(name)}'{table.columns_hint()}")
    guessed = [flag for flag, given in (("image", image), ("caption", caption)) if not given]
    given = [*[image] * bool(image), *(_listed(table, caption) if caption else ())]
    marks = find_marks(table, given)
    light = replace(table, columns=[name for name in table.columns if name not in marks.columns])
    captions = _listed(table, caption) if caption else _caption_columns(light, image)
    image = image or _image_column(light, captions, is_photo)
    if not captions and image is not None:
        captions = _captions_among(table, [name for name in light.columns if name != image])
    if captions and not caption and _are_labels(table, captions):
        captions = []
    talk = [name for name in captions if plain(name) in CONVERSATIONS]
    for flag, found in (("image", image is not None or talk), ("caption", captions)):
        if not found:
            hint = table.columns_hint()
            error = NoCaptionsError if flag == "caption" else ClipcapError
            raise error(f"{shown(table.path)}: cannot tell the {flag} column, give --{flag}_column{hint}")
    where = "the messages" if image is None else f"'{shown(image)}'"
    listed = ", ".join(f"'{shown(name)}'" for name in captions)
    note = f"columns: images from {where}, captions from {listed}"
    if marks.splits:
        note += ", splits from " + ", ".join(f"'{shown(name)}'" for name in marks.splits)
    flags = " ".join(f"--{flag}_column" for flag in guessed)
    return Columns(
        image,
        captions,
        next((name for name in light.columns if plain(name) in FOLDER_NAMES), None),
        marks,
        "status" if {"status", "key"} <= set(table.columns) else None,
        f"{note} (guessed; {flags} to change)" if guessed else None,
        _separators(table, captions),
    )


def _listed(table: Table, caption: str) -> list[str]:
    """--caption_column: one column, or several with commas between."""
    parts = [part.strip() for part in caption.split(",")]
    return parts if caption not in table.columns and all(part in table.columns for part in parts) else [caption]


def _caption_columns(table: Table, image: str | None) -> list[str]:
    columns = [name for name in table.columns if name != image and name not in table.image_columns]
    by_name = {plain(name): name for name in reversed(columns)}
    filled = _filled(table, columns) if any(name in by_name for name in CAPTION_NAMES) else set()
    named: list[list[str]] = []
    for base in CAPTION_NAMES:
        if found := column_family(base, columns) or ([by_name[base]] if base in by_name else []):
            named.append(found)
    return next((found for found in named if filled & set(found)), named[0] if named else [])


def _filled(table: Table, columns: list[str]) -> set[str]:
    """The columns with something in their first rows."""
    sample = [cells for _, cells in itertools.islice(table.rows(*columns), _SAMPLE_ROWS)]
    return {name for i, name in enumerate(columns) if any(cells[i] not in (None, "", []) for cells in sample)}


def _image_column(table: Table, captions: list[str], is_photo: Callable[[str], bool]) -> str | None:
    """The column that names or holds images: by its type, by its name and content, by its content, by its name.

    One of file names whose pictures are here comes before one of other file names, or of numbers, and last are links.
    """
    columns = [name for name in table.columns if name not in captions]
    by_name = {plain(name): name for name in reversed(columns)}
    named = [by_name[name] for name in IMAGE_NAMES if name in by_name]
    ids = [by_name[name] for name in ID_NAMES if name in by_name]
    stored = [name for name in table.image_columns if name in columns]
    if stored:
        return next((name for name in named if name in stored), stored[0])
    light = [name for name in columns if name not in table.image_columns]
    sample = [cells for _, cells in itertools.islice(table.rows(*light), _SAMPLE_ROWS)]
    cells_of = {name: [cells[i] for cells in sample] for i, name in enumerate(light)}
    files = [name for name in light if _mostly(cells_of[name], lambda cell: holds_image(cell, is_photo, False))]
    there = [name for name in files if _mostly(cells_of[name], lambda cell: _names_photo(cell, is_photo))]
    links = [name for name in light if _mostly(cells_of[name], lambda cell: holds_image(cell, is_photo))]
    for holding in (there, files, links):
        for name in [*named, *ids, *holding]:
            if name in holding:
                return name
    if any(plain(name) in CONVERSATIONS for name in captions) and not named:
        talk = table.rows(*captions)
        if any(image_in_conversation(cells[0]) for _, cells in itertools.islice(talk, _SAMPLE_ROWS)):
            return None
    return next(iter([*named, *ids]), None)


def holds_image(cell: object, is_photo: Callable[[str], bool], links: bool = True) -> bool:
    """Whether a cell is an image, or names one; a link to one counts if `links`, else where its picture is here."""
    try:
        found = image_in(cell)
    except RowError as error:
        return error.kind == SEVERAL_IMAGES  # which is for the report to say
    if not isinstance(found, str):
        return isinstance(found, bytes)
    return (is_data([found]) and (links or not is_link(found))) or is_photo(found)


def _names_photo(cell: object, is_photo: Callable[[str], bool]) -> bool:
    """Whether a cell is the name of a file, with its suffix, that is here."""
    return isinstance(cell, str) and is_data([cell]) and not is_link(cell) and is_photo(cell)


def _mostly(cells: list, test: Callable[[object], bool]) -> bool:
    filled = [cell for cell in cells if cell not in (None, "")]
    return sum(map(test, filled)) * 2 > len(filled)


def _captions_among(table: Table, columns: list[str]) -> list[str]:
    """The captions in columns whose names say nothing: the only one, that of the longest texts, or of sentences."""
    if len(columns) == 1:
        cells = [cells[0] for _, cells in itertools.islice(table.rows(*columns), _SAMPLE_ROWS)]
        return [] if holds_flags(cells) else columns
    return _sentences(table, columns) or (_longest_texts(table, columns) if table.headless else [])


def _are_labels(table: Table, columns: list[str]) -> bool:
    """Whether columns hold numbers of classes, or words for splits, and no captions."""
    sample = itertools.islice(table.rows(*columns), _SAMPLE_ROWS)
    cells = [str(cell).strip() for _, cells in sample for cell in cells if cell is not None and cell == cell]
    splits = {split_word(cell) for cell in cells if cell}
    if not splits or (None not in splits and len(splits) > 1):
        return bool(splits)
    names = {plain(name) for name in columns} - {*TAGS}
    numbers = all(NUMBER.fullmatch(cell) for cell in cells if cell)
    return not any(name in CAPTION_NAMES for name in names) and not caption_family(names) and numbers


def _longest_texts(table: Table, columns: list[str]) -> list[str]:
    """Of columns without names, the one with the longest texts on the whole."""
    lengths = _lengths(table, columns)
    return [columns[lengths.index(max(lengths))]] if columns else []


def _lengths(table: Table, columns: list[str]) -> list[float]:
    """The mean length of the texts in each column, in characters."""
    sample = [cells for _, cells in itertools.islice(table.rows(*columns), _SAMPLE_ROWS)]
    texts = [[str(cells[i]) for cells in sample if cells[i] not in (None, "")] for i in range(len(columns))]
    return [sum(map(len, found)) / max(1, len(found)) for found in texts]


def _separators(table: Table, columns: list[str]) -> dict[str, str]:
    """The sign between captions, of the columns where nearly every cell has one, with a few words on each side."""
    found = {}
    sample = [cells for _, cells in itertools.islice(table.rows(*columns), _SAMPLE_ROWS)]
    for i, name in enumerate(columns):
        texts = [cells[i] for cells in sample if isinstance(cells[i], str) and cells[i].strip()]
        several = plain(name).removesuffix("s") in CAPTION_NAMES and name.lower().endswith("s")
        for sign in (*_SEPARATORS, *["\n"] * several):
            lists = [[part.split() for part in text.split(sign) if part.strip()] for text in texts if sign in text]
            usual = len(lists) >= max(_FEWEST_LISTS, _USUAL * len(texts))
            if usual and all(len(parts) > 1 and all(1 < len(words) <= 40 for words in parts) for parts in lists):
                found[name] = sign
                break
    return found


def _sentences(table: Table, columns: list[str]) -> list[str]:
    """The column that holds sentences, whatever it is called in any language; of several, those that have numbers."""
    sample = [cells for _, cells in itertools.islice(table.rows(*columns), _SAMPLE_ROWS)]
    found = [name for i, name in enumerate(columns) if _mostly([cells[i] for cells in sample], _is_sentence)]
    if len(found) > 1 and all(name.isdigit() for name in found):
        lengths = _lengths(table, found)
        return [name for name, length in zip(found, lengths) if 2 * length >= max(lengths)]
    return found if len(found) == 1 else []


def _is_sentence(cell: object) -> bool:
    """Whether a cell holds a sentence, alone, in a list, or as the caption in an object."""
    try:
        texts = captions_in(cell) if isinstance(cell, dict) else cell if isinstance(cell, list) else [cell]
    except RowError:
        return False
    return any(isinstance(text, str) and len(_WORD.findall(text)) >= _SENTENCE_WORDS for text in texts)
