"""Texts without images: lines, tables, or the captions of any image-caption set."""

from __future__ import annotations

from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.runtime.text import shown
from clipcap.sources.cells import captions_in
from clipcap.sources.collector import clean_caption
from clipcap.sources.faults import Faults, RowError
from clipcap.sources.names import CAPTION_NAMES, ID_NAMES, IMAGE_NAMES, column_family, plain
from clipcap.sources.tables import Table, read_table
from clipcap.sources.textfiles import read_lines

Groups = dict[str, list[str]]  # texts by what they describe


def read_texts(path: Path, caption_column: str | None = None, image_column: str | None = None) -> Groups:
    """The texts of a file: its lines, or a column of a table.

    Args:
        path: `.txt`, or a table (`.csv`, `.tsv`, `.json`, `.jsonl`, `.parquet`).
        caption_column: of the texts (default: guessed from the columns' names).
        image_column: rows of one value describe the same image (default: guessed; else each row is one image).
    Raises:
        ClipcapError: the file cannot be read, has no such column, or no text in it.
    """
    if path.suffix.lower() == ".txt":
        groups = {f"line {number}": [line] for number, line in enumerate(read_lines(path), 1)}
    else:
        groups = _read_text_table(read_table(path), caption_column, image_column)
    groups = {name: [text for text in map(clean_caption, texts) if text] for name, texts in groups.items()}
    groups = {name: texts for name, texts in groups.items() if texts}
    if not groups:
        raise ClipcapError(f"{shown(path)}: holds no text: give a file with a text on each line, or a table of them")
    return groups


def _read_text_table(table: Table, caption: str | None, image: str | None) -> Groups:
    by_name = {plain(name): name for name in reversed(table.columns)}
    captions = [caption] if caption else _caption_columns(table, by_name)
    if not captions:
        raise ClipcapError(
            f"{shown(table.path)}: cannot tell the column of the texts, give --caption_column{table.columns_hint()}"
        )
    named = (by_name[name] for name in (*IMAGE_NAMES, *ID_NAMES) if name in by_name)
    image = image or next((name for name in named if name not in captions), None)
    faults, groups = Faults(), {}
    for number, (where, cells) in enumerate(table.rows(*captions, *[image] if image else [], faults=faults)):
        try:
            texts = [text for cell in cells[: len(captions)] for text in captions_in(cell)]
        except RowError as error:
            raise ClipcapError(f"{where}: {error}: name the column of the texts with --caption_column") from error
        name = str(cells[-1]) if image and cells[-1] not in (None, "") else f"row {number}"
        groups.setdefault(name, []).extend(texts)
    return groups


def _caption_columns(table: Table, by_name: dict[str, str]) -> list[str]:
    for name in CAPTION_NAMES:
        if found := column_family(name, table.columns) or ([by_name[name]] if name in by_name else []):
            return found
    return list(table.columns) if len(table.columns) == 1 else []
