"""JSON that holds a table, in the shapes that programs give it: rows, columns, a mapping, an object a line."""

from __future__ import annotations

import ast
import itertools
import json
import warnings
from collections.abc import Iterator
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.images.kinds import is_image_name
from clipcap.runtime.text import in_short, shown
from clipcap.sources.annotation_tools import flat_rows, via_images
from clipcap.sources.faults import Faults
from clipcap.sources.names import CAPTION_NAMES, ID_NAMES, IMAGE_NAMES, SPLIT_WORDS, caption_family, plain
from clipcap.sources.textfiles import RepeatedKeyError, TextPlace, parse_json, read_lines

MAX_REPR_CHARACTERS = 2**20  # of a Python object in a line; its parser takes much more memory than JSON's
_WRAPPERS = ("data", "annotations", "rows", "samples", "items", "examples", "records", "entries", "images", "dataset")

_DEEPEST = 6  # objects around a table

Numbered = Iterator[tuple[str, Any]]  # (unit and number, value): ("entry 3", {...})


def read_json_values(path: TextPlace, lines: bool, faults: Faults) -> Any:
    """The value in a JSON file; the values of its lines as a list, where it holds one a line whatever its name.

    Raises:
        ClipcapError: it is neither.
    """
    if not lines:
        text = "".join(read_lines(path))
        try:
            return parse_json(text, shown(path))
        except RepeatedKeyError:
            raise
        except ClipcapError as error:
            if text.lstrip()[:1] in ("[", "{") and (value := python_object(text)) is not None:
                return value
            if "Extra data" not in str(error) and not text.lstrip().startswith("{'"):
                raise
            values = _one_after_another(text, path, faults)
            if len(values) < 2 and not text.lstrip().startswith("{'"):
                raise
            return Lines(values)
    first = next((line for line in read_lines(path) if line.strip()), "")
    if first.lstrip().startswith("[") or first.strip() == "{":  # a whole document under the name of lines
        text = "".join(read_lines(path))
        try:
            return parse_json(text, shown(path))
        except RepeatedKeyError:
            raise
        except ClipcapError as error:
            if (value := python_object(text)) is not None:
                return value
            if "Extra data" not in str(error) and python_object(first.strip().rstrip(",")) is None:
                raise
            if first.strip() == "{":
                return Lines(_one_after_another("".join(read_lines(path)), path, faults))
    values = list(_lines(path, faults))
    if len(values) == 1 and isinstance(values[0][1], dict) and not any(map(_names_images, values[0][1])):
        return values[0][1]  # a whole document on one line
    return Lines(values)


def holds_json(path: TextPlace) -> bool:
    """Whether a text begins with an object or a list, on one line or over several."""
    first = next((line.strip() for line in read_lines(path) if line.strip()), "")
    if first[:1] == "(":
        return isinstance(python_object(first.rstrip(",")), tuple)
    if first[:1] not in ("{", "["):
        return False
    try:
        return first in ("{", "[", "[{") or _value(first, "") is not None
    except ClipcapError:
        return python_object(first) is not None


class Lines(list):
    """Values of a file with one a line: (where, value)."""


def _lines(path: TextPlace, faults: Faults) -> Numbered:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            where = f"line {number}"
            try:
                yield where, _value(line, f"{shown(path)}: {where}")
            except ClipcapError as error:
                why = str(error).removeprefix(f"{shown(path)}: {where}: ")
                faults.add(f"{shown(path)}: {where}", why, "not valid JSON")


def _value(line: str, where: str) -> Any:
    """A line of JSON, or of a Python object as `print` writes it."""
    try:
        return parse_json(line.strip().rstrip(","), where)
    except ClipcapError:
        text = line.strip().rstrip(",")
        if text.startswith(("{'", "['", "('", '("')) and (value := python_object(text)) is not None:
            return value
        raise


def python_object(text: str) -> Any:
    """The Python list, tuple or dict of plain values in a text; None for other texts."""
    if len(text) > MAX_REPR_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of the compiler: backslashes in the texts of others
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _one_after_another(text: str, path: TextPlace, faults: Faults) -> list[tuple[str, Any]]:
    """Values written behind one another, each over one line or several."""
    if "\n" in text.strip():
        by_line = Faults()
        values = list(_lines(path, by_line))
        if values and len(by_line) <= len(values) / 10 and all(isinstance(v, dict) for _, v in values[:20]):
            list(_lines(path, faults))  # counts what was left out
            return values
    decoder, values, position = json.JSONDecoder(parse_constant=lambda _: None), [], 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if position == len(text):
            return values
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            faults.add(f"{shown(path)}: after entry {len(values)}", f"not valid JSON ({in_short(str(error))})")
            return values
        values.append((f"entry {len(values) + 1}", value))


def table_rows(value: Any, path: TextPlace) -> list[tuple[str, Any]]:
    """(where, row) of every row in a JSON value, whatever its shape; a row is an object as a rule.

    Raises:
        ClipcapError: it is not a table.
    """
    if isinstance(value, Lines):
        return _from_list([row for _, row in value], [where for where, _ in value])
    if isinstance(value, (list, tuple)):
        return _from_list(list(value), [f"entry {i}" for i in range(1, len(value) + 1)])
    if isinstance(value, dict):
        found = _from_object(value, path)
        if found is not None:
            return found
        keys = ", ".join(f"'{shown(str(key)[:40])}'" for key in list(value)[:10])
        raise ClipcapError(f"{shown(path)}: expected a list of objects, or captions by image; its keys are {keys}")
    raise ClipcapError(f"{shown(path)}: expected a list of objects, one per image or caption")


def _from_list(values: list, wheres: list[str]) -> list[tuple[str, Any]]:
    if values and all(isinstance(value, dict) and isinstance(value.get("row"), dict) for value in values):
        values = [value["row"] for value in values]  # the hub's server of rows
    values = flat_rows(values) or values
    if values and all(isinstance(v, dict) and len(v) == 1 and is_image_name(str(next(iter(v)))) for v in values):
        values = [{"image": name, "caption": cell} for value in values for name, cell in value.items()]
    if values and all(isinstance(value, (list, tuple)) and value for value in values) and _flat(values[0]):
        return _from_arrays([list(value) for value in values], wheres)
    return list(zip(wheres, values))


def _flat(row: list | tuple) -> bool:
    return len(row) > 1 and all(isinstance(cell, (str, int, float, list)) or cell is None for cell in row)


def _from_arrays(values: list[list], wheres: list[str]) -> list[tuple[str, Any]]:
    """Rows as arrays, with a first one that names the columns or without."""
    head = values[0]
    named = all(isinstance(cell, str) for cell in head) and not any(is_image_name(cell) for cell in head)
    named = named and any(map(_names_images, head))
    names = head if named else [str(i + 1) for i in range(len(head))]
    rows = list(zip(wheres, values))[named:]
    return [(where, dict(zip(names, row)) if len(row) == len(names) else row) for where, row in rows]


def _from_object(value: dict, path: TextPlace, depth: int = 0) -> list[tuple[str, Any]] | None:
    """The rows in an object; None where it is of no known shape."""
    value = via_images(value) or value
    if not value:
        return []
    keys = list(value)
    columns = any(map(_names_images, keys)) and any(map(_names_captions, keys))
    if all(isinstance(column, list) for column in value.values()) and (columns or _lists_images(value)):
        rows = itertools.zip_longest(*value.values())  # a column after the other
        return [(f"entry {i}", dict(zip(keys, row))) for i, row in enumerate(rows, 1)]
    if columns and all(isinstance(column, dict) for column in value.values()):  # pandas, by column
        index = dict.fromkeys(key for column in value.values() for key in column)
        return [(f"entry '{shown(i)}'", {name: column.get(i) for name, column in value.items()}) for i in index]
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):  # pandas, split
        names, rows = ["", *map(str, value["columns"])], value["data"]
        index = value.get("index")
        index = index if isinstance(index, list) and len(index) == len(rows) else [None] * len(rows)
        rows = [dict(zip(names, [i, *row])) if isinstance(row, list) else row for i, row in zip(index, rows)]
        return [(f"entry {i}", row) for i, row in enumerate(rows, 1)]
    if columns:
        return [("entry 1", value)]
    splits = {key: SPLIT_WORDS.get(key.lower()) for key in keys}
    if all(splits.values()) and all(isinstance(part, (list, dict)) for part in value.values()):
        return [
            (f"'{shown(key)}', {where}", {**row, "split": splits[key]} if isinstance(row, dict) else row)
            for key, part in value.items()
            for where, row in table_rows(part, path)
        ]
    for key in _WRAPPERS:
        inner = value.get(key)
        if isinstance(inner, list) and _is_list_of_objects(inner):
            return _from_list(inner, [f"{key} entry {i}" for i in range(1, len(inner) + 1)])
    return _by_image(value) or _inside(value, path, depth + 1)


def _inside(value: dict, path: TextPlace, depth: int) -> list[tuple[str, Any]] | None:
    """The rows of the one part of an object that is a table, whatever it is called; None where there are several."""
    if depth > _DEEPEST:
        return None
    found = []
    for key, part in value.items():
        named = {str(name) for row in part[:20] for name in row} if _is_list_of_objects(part) else set()
        if any(map(_names_images, named)) and any(map(_names_captions, named)):
            found.append([(f"'{shown(key)}', {where}", row) for where, row in table_rows(part, path)])
        elif isinstance(part, dict) and part and (rows := _from_object(part, path, depth)):
            found.append([(f"'{shown(key)}', {where}", row) for where, row in rows])
    return found[0] if len(found) == 1 else None


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value[:20])


def _by_image(value: dict) -> list[tuple[str, Any]] | None:
    """{image: caption}, {image: [captions]}, {image: {"caption": ...}} as kohya's scripts write it."""
    cells = list(value.values())
    if all(isinstance(cell, dict) for cell in cells):
        keys = {key for cell in cells[:100] for key in cell}
        if any(map(_names_images, keys)):  # pandas, by row
            return [(f"entry '{shown(str(key)[:80])}'", cell) for key, cell in value.items()]
        if not any(map(_names_captions, keys)):
            return None
        rows = ({"image": name, **cell} for name, cell in value.items())
    elif all(map(_is_list_of_objects, cells)) and any(map(_names_images, {key for row in cells[0] for key in row})):
        return [  # by some other key: each row names its image itself
            (f"entry '{shown(str(key)[:80])}'", row) for key, rows in value.items() for row in rows
        ]
    elif all(cell is None or isinstance(cell, (str, list)) for cell in cells):
        if any(isinstance(part, dict) for cell in cells if isinstance(cell, list) for part in cell[:3]) and not all(
            _names_captions(key)
            for cell in cells
            if isinstance(cell, list)
            for part in cell[:1]
            if isinstance(part, dict)
            for key in list(part)[:1]
        ):
            return None
        rows = ({"image": name, "caption": cell} for name, cell in value.items())
    else:
        return None
    return [(f"entry {i}", row) for i, row in enumerate(rows, 1)]


def _lists_images(value: dict) -> bool:
    """Whether one of several lists is of images, and another of something else: the lists are columns."""
    parts = [column[:20] for column in value.values()]
    images = [all(isinstance(cell, str) and is_image_name(cell) for cell in part) for part in parts if part]
    return any(images) and not all(images) and not any(isinstance(cell, dict) for part in parts for cell in part)


def _names_images(name: str) -> bool:
    return any(text in (*IMAGE_NAMES, *ID_NAMES) for text in (plain(name), plain(name).removesuffix("s")))


def _names_captions(name: str) -> bool:
    return plain(name) in CAPTION_NAMES or bool(caption_family([name]))
