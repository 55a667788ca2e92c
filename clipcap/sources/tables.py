"""Tables of any make: CSV, TSV, JSON, JSON Lines, Parquet, read by column name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.images.kinds import is_image_name
from clipcap.runtime.text import reason, shown
from clipcap.sources.delimited import find_layout, read_rows, wrong_width
from clipcap.sources.faults import Faults
from clipcap.sources.json_tables import holds_json, read_json_values, table_rows
from clipcap.sources.textfiles import TextPlace
from clipcap.sources.unpack import PACKED, unpacked_name

Row = tuple[str, list]  # its place ("x.csv: line 7"), and the cells asked for
MAX_CELL_CHARACTERS = 131_072
_PICTURES = 64  # of a Parquet file, read at a time
_SAVE_AS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "a spreadsheet: save it as CSV in UTF-8"),
    **dict.fromkeys(
        (".arrow", ".feather"), "an Arrow file: write it as Parquet (Dataset.to_parquet, pandas.to_parquet)"
    ),
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"), "packed: unpack it first"),
    **dict.fromkeys((".yaml", ".yml", ".toml"), "settings, or captions in another notation: write them as JSON"),
    **dict.fromkeys((".xml", ".xmp", ".html", ".htm"), "markup: write the captions in it as CSV or JSON"),
    **dict.fromkeys((".pkl", ".pickle"), "a pickle: write it as CSV or Parquet (pandas.to_parquet)"),
}


@dataclass(frozen=True)
class Table:
    """A table on disk: its column names, and its rows read anew at every call of `rows`."""

    path: TextPlace
    columns: list[str]
    _read: Callable[[list[str], Faults, dict[str, int]], Iterator[Row]]
    image_columns: tuple[str, ...] = ()  # known to hold the images themselves
    document: Any = field(default=None, repr=False)  # what a JSON file holds
    headless: bool = False  # its first line is a row, columns go by number

    def rows(self, *columns: str, faults: Faults | None = None, notes: dict[str, int] | None = None) -> Iterator[Row]:
        """(where, cells) of each row, with the cells of `columns` in that order.

        Args:
            faults: collects broken rows, which are left out.
            notes: takes what was done to make sense of others, with a count.
        Raises:
            ClipcapError: a column is missing (the message lists the columns), or the file is damaged.
        """
        for column in columns:
            if column not in self.columns:
                raise ClipcapError(f"{shown(self.path)}: no column '{shown(column)}'{self.columns_hint()}")
        return self._read(list(columns), Faults() if faults is None else faults, {} if notes is None else notes)

    def columns_hint(self) -> str:
        """What the columns are, or that the header seems to be missing, to end an error message with."""
        names = ", ".join(f"'{shown(name[:40])}'" for name in self.columns[:40])
        if self.headless:
            return f"; it has no header line, its columns go by number: {names}"
        if any(is_image_name(name) for name in self.columns):
            return f"; its first line looks like data ({names}): put a header line with the column names on top"
        return f"; its columns are {names}"


def read_table(path: TextPlace, faults: Faults | None = None) -> Table:
    """Open a table; its suffix says which kind it is. `faults` collects broken lines."""
    suffix = os.path.splitext(unpacked_name(str(path)))[1].lower()
    reader = _READERS.get(suffix)
    if reader is None:
        hint = how_to_save(str(path))
        kinds = f"not a table that can be read ({', '.join(_READERS)})"
        raise ClipcapError(f"{shown(path)}: {kinds}{f'; it is {hint}' if hint else ''}")
    table = reader(path, Faults() if faults is None else faults)
    for i, name in enumerate(table.columns):
        if name and name in table.columns[:i]:
            raise ClipcapError(f"{shown(path)}: two columns are called '{shown(name)}': rename one")
    return table


def how_to_save(name: str) -> str:
    """What a file is that could be a table, and how to make one of it; empty for other names."""
    return _SAVE_AS.get(os.path.splitext(name)[1].lower(), "")


def _read_csv(path: TextPlace, faults: Faults) -> Table:
    if holds_json(path):
        return _read_json_lines(path, faults)
    layout = find_layout(path)

    def read(wanted: list[str], faults: Faults, notes: dict[str, int]) -> Iterator[Row]:
        places = [layout.columns.index(name) for name in wanted]
        last, width, place = max(places, default=0), len(layout.columns), shown(path)
        for number, cells in read_rows(path, layout, faults, notes):
            where = f"{place}: line {number}"
            if last >= len(cells) or len(cells) > width:  # Excel leaves out empty cells at the end of a line
                faults.add(where, wrong_width(cells, layout), "not as many fields as the header has")
            elif max(map(len, cells)) > MAX_CELL_CHARACTERS:
                faults.add(where, f"a field larger than {MAX_CELL_CHARACTERS:,} characters")
            else:
                yield where, [cells[i] for i in places]

    return Table(path, layout.columns, read, headless=layout.headless)


def _read_json(path: TextPlace, faults: Faults) -> Table:
    return _table_of_values(path, read_json_values(path, False, faults))


def _read_json_lines(path: TextPlace, faults: Faults) -> Table:
    return _table_of_values(path, read_json_values(path, True, faults))


def _table_of_values(path: TextPlace, document: Any) -> Table:
    if isinstance(document, dict) and {"annotations", "images"} <= set(document):
        return Table(path, [], lambda *_: iter(()), document=document)
    if (
        isinstance(document, dict)
        and isinstance(document.get("images"), list)
        and _have_sentences(document["images"])
    ):
        return Table(path, [], lambda *_: iter(()), document=document)
    try:
        rows = [(f"{shown(path)}: {where}", value) for where, value in table_rows(document, path)]
    except RecursionError as error:
        raise ClipcapError(f"{shown(path)}: nested too deeply to be a list of captions") from error
    if not rows:
        raise ClipcapError(f"{shown(path)}: the file is empty")
    objects = [row for _, row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(str(key) for row in objects for key in row))
    if not columns:
        where, value = rows[0]
        raise ClipcapError(f"{where} is a {type(value).__name__}, expected an object with named columns")

    def read(wanted: list[str], faults: Faults, _: dict[str, int]) -> Iterator[Row]:
        for where, row in rows:
            if isinstance(row, dict):
                yield where, [row.get(name) for name in wanted]
            else:
                faults.add(where, f"is a {type(row).__name__}, expected an object with named columns")

    return Table(path, columns, read, document=document)


def _have_sentences(images: list) -> bool:
    """Whether a list is of Karpathy's entries."""
    return bool(images) and any(isinstance(entry, dict) and "sentences" in entry for entry in images[:20])


def _read_parquet(path: TextPlace, _: Faults) -> Table:
    import pyarrow.parquet

    from clipcap.runtime.safe_load.parquet import DAMAGED, read_batches

    if not isinstance(path, Path):
        raise ClipcapError(f"{shown(path)}: Parquet inside a tar is not read: unpack the tar")

    def read(wanted: list[str], faults: Faults, notes: dict[str, int]) -> Iterator[Row]:
        number = 0
        try:
            for batch in read_batches(path, wanted, _PICTURES if set(wanted) & set(images) else 2**16):
                for row in batch.select(wanted).to_pylist():
                    number += 1
                    yield f"{shown(path)}: row {number}", [row[name] for name in wanted]
        except DAMAGED as error:
            raise ClipcapError(f"{shown(path)}: damaged Parquet file ({reason(error)})") from error

    try:
        schema = pyarrow.parquet.read_schema(path)
    except FileNotFoundError as error:
        raise ClipcapError(f"{shown(path)}: no such file") from error
    except DAMAGED as error:
        raise ClipcapError(f"{shown(path)}: not a Parquet file ({reason(error)})") from error
    images = tuple(name for name in schema.names if _holds_images(schema.field(name).type))
    return Table(path, schema.names, read, images)


def _holds_images(kind: Any) -> bool:
    """Whether a column's type is that of images: bytes, or the hub's structure of bytes and path."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


TEXT_SUFFIXES = (".txt", ".token", ".md", ".markdown", ".tex", ".dat", ".lst")  # of tables, and of much else
_READERS: dict[str, Callable[[TextPlace, Faults], Table]] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".psv", *TEXT_SUFFIXES), _read_csv),
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".jsonlines": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}
_OFTEN_PACKED = (".csv", ".tsv", ".json", ".jsonl", ".jsonlines", ".ndjson")
TABLE_SUFFIXES = (*_READERS, *(suffix + packed for suffix in _OFTEN_PACKED for packed in PACKED))
PACKED_SUFFIXES = tuple(_SAVE_AS)
PHOTO_ARCHIVES = (".zip", ".7z", ".rar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
