"""Tables of any make: CSV, TSV, JSON, JSON Lines, Parquet, read by column name."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.images.folders import is_image_name
from clipcap.runtime.text import reason, shown
from clipcap.sources.textfiles import parse_json, read_json, read_lines

Row = tuple[str, list]  # where it stands ("x.csv: line 7"), and the cells asked for


@dataclass(frozen=True)
class Table:
    """A table on disk: its column names, and its rows read anew at every call of `rows`."""

    path: Path
    columns: list[str]
    _read: Callable[[list[str]], Iterator[Row]]

    def rows(self, *columns: str) -> Iterator[Row]:
        """(where, cells) of each row, with the cells of `columns` in that order.

        Raises:
            ClipcapError: a column is not there (the message lists those that are), or a row is malformed.
        """
        for column in columns:
            if column not in self.columns:
                raise ClipcapError(f"{shown(self.path)}: no column '{shown(column)}'{self.columns_hint()}")
        return self._read(list(columns))

    def columns_hint(self) -> str:
        """What the columns are, or that the header seems to be missing, to end an error message with."""
        names = ", ".join(f"'{shown(name[:40])}'" for name in self.columns[:40])
        if any(is_image_name(name) for name in self.columns):
            return f"; its first line looks like data ({names}): put a header line with the column names on top"
        return f"; its columns are {names}"


def read_table(path: Path) -> Table:
    """Open a table; its suffix says which kind it is."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ClipcapError(f"{shown(path)}: not a table that can be read ({', '.join(_READERS)})")
    table = reader(path)
    for i, name in enumerate(table.columns):
        if name and name in table.columns[:i]:
            raise ClipcapError(f"{shown(path)}: column '{shown(name)}' is there twice: rename one")
    return table


def _read_csv(path: Path) -> Table:
    header = next(_csv_rows(path, delimiter := _delimiter(path)), None)
    if header is None:
        raise ClipcapError(f"{shown(path)}: the file is empty")
    columns = [name.strip() for name in header[1]]

    def read(wanted: list[str]) -> Iterator[Row]:
        places = [columns.index(name) for name in wanted]
        for number, cells in itertools.islice(_csv_rows(path, delimiter), 1, None):
            where = f"{shown(path)}: line {number}"
            if len(cells) != len(columns):
                raise ClipcapError(
                    f"{where}: {len(cells)} fields where the header has {len(columns)} "
                    f"(a text with {shown(delimiter)} in it belongs in double quotes)"
                )
            yield where, [cells[place] for place in places]

    return Table(path, columns, read)


def _delimiter(path: Path) -> str:
    """Tab for .tsv, else the commonest of the usual delimiters in the header line."""
    first = next(read_lines(path), "")
    return "\t" if path.suffix.lower() == ".tsv" else max(",\t;|", key=first.count)


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not blank.

    Strict: a quote left open would swallow the rest of the file into one caption.
    """
    reader = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise ClipcapError(
            f"{shown(path)}: row at line {start}: {reason(error)} (is a double quote left open?)"
        ) from error


def _read_json(path: Path) -> Table:
    data = read_json(path)
    if isinstance(data, dict) and {"annotations", "images"} & set(data):
        raise ClipcapError(f"{shown(path)}: this is COCO's format: parse it with parse/coco.py")
    if isinstance(data, dict):  # {"1.jpg": "a caption" or ["several", ...], ...}
        data = [{"image": name, "caption": caption} for name, caption in data.items()]
    if not isinstance(data, list):
        raise ClipcapError(f"{shown(path)}: expected a list of objects, one per image or caption")
    return _table_of_objects(path, "entry", enumerate(data, 1))


def _read_json_lines(path: Path) -> Table:
    lines = ((number, line) for number, line in enumerate(read_lines(path), 1) if line.strip())
    parsed = ((number, parse_json(line, f"{shown(path)}: line {number}")) for number, line in lines)
    return _table_of_objects(path, "line", parsed)


def _table_of_objects(path: Path, unit: str, numbered: Iterable[tuple[int, Any]]) -> Table:
    objects = [(f"{shown(path)}: {unit} {number}", value) for number, value in numbered]
    if not objects:
        raise ClipcapError(f"{shown(path)}: the file is empty")
    for where, value in objects:
        if not isinstance(value, dict):
            raise ClipcapError(f"{where} is a {type(value).__name__}, expected an object with named columns")
    columns = list(dict.fromkeys(key for _, value in objects for key in value))

    def read(wanted: list[str]) -> Iterator[Row]:
        return ((where, [value.get(name) for name in wanted]) for where, value in objects)

    return Table(path, columns, read)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    from clipcap.runtime.safe_load.parquet import read_batches

    def read(wanted: list[str]) -> Iterator[Row]:
        number = 0
        try:
            for batch in read_batches(path, wanted):
                for row in batch.select(wanted).to_pylist():
                    number += 1
                    yield f"{shown(path)}: row {number}", [row[name] for name in wanted]
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ClipcapError(f"{shown(path)}: damaged Parquet file ({reason(error)})") from error

    try:
        columns = pyarrow.parquet.read_schema(path).names
    except FileNotFoundError as error:
        raise ClipcapError(f"{shown(path)}: no such file") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ClipcapError(f"{shown(path)}: not a Parquet file ({reason(error)})") from error
    return Table(path, columns, read)


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
TABLE_SUFFIXES = tuple(_READERS)
