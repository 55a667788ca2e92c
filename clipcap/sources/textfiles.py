"""Text files read strictly: UTF-8 or an error that names the line, JSON without surprises."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.runtime.text import reason, shown

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, line ends kept, a byte-order mark removed.

    Raises:
        ClipcapError: the file is missing, is no text, or is not UTF-8 (with the line and how to convert it).
    """
    try:
        with open(path, "rb") as file:
            yield from decode_lines(file, path)
    except (OSError, ValueError) as error:
        if isinstance(error, ClipcapError):
            raise
        raise ClipcapError(f"{shown(path)}: {_why(error)}") from error


def decode_lines(lines: Iterable[bytes], path: Path) -> Iterator[str]:
    """As `read_lines`, from lines already split at the line feeds; `path` is named in errors.

    Only a line feed ends a line, so that U+2028 or a form feed inside a caption does not.
    """
    for number, line in enumerate(lines, 1):
        yield _decode(line.removeprefix(_BOM) if number == 1 else line, path, number)


def _decode(line: bytes, path: Path, number: int) -> str:
    where = f"{shown(path)}: line {number}"
    if number == 1 and line.startswith(_UTF16_BOMS):
        raise ClipcapError(f"{shown(path)}: UTF-16, not UTF-8; {_conversion(path, 'UTF-16')}")
    if b"\0" in line:
        raise ClipcapError(f"{where} holds a NUL byte: not a UTF-8 text file, or a damaged one")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} (0x{line[error.start]:02x})"
        raise ClipcapError(f"{where}, {byte} is not UTF-8; {_conversion(path, 'WINDOWS-1252')}") from error


def _conversion(path: Path, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 '{shown(path.name)}' > 'utf8-{shown(path.name)}'"


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a file"
    return f"cannot be read ({reason(error)})"


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return parse_json("".join(read_lines(path)), shown(path))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON from outside: NaN and Infinity become null, a key given twice is an error.

    Raises:
        ClipcapError: not JSON, a repeated key (one of the two values would be lost in silence), or nested
            deeper than the parser goes; `where` starts the message.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=lambda _: None)
    except RecursionError as error:
        raise ClipcapError(f"{where}: nested too deeply to be a list of captions") from error
    except ValueError as error:
        raise ClipcapError(f"{where}: not valid JSON ({reason(error)})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!a} is given twice in one object")
    return result
