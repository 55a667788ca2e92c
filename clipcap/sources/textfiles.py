"""Text files read strictly: UTF-8 or UTF-16, or an error that names the line; JSON without surprises."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from clipcap.errors import ClipcapError
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import reason, shown
from clipcap.sources.unpack import UNPACKING_ERRORS, open_packed

_BOM = b"\xef\xbb\xbf"
_BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_HEAD_BYTES = 4096

TextPlace = Path | ImageRef  # a file, or a member of a tar


def open_bytes(place: TextPlace) -> BinaryIO:
    """The file, unpacked where it is packed, or the member of a tar, as a binary stream."""
    return place.open() if isinstance(place, ImageRef) else open_packed(place)


def read_lines(path: TextPlace) -> Iterator[str]:
    """The lines of a text in UTF-8 or UTF-16, line ends kept, a byte-order mark removed.

    Only a line feed ends a line, so that U+2028 or a form feed inside a caption does not; a file without any, as
    spreadsheets on old Macs write them, is split at its carriage returns.

    Raises:
        ClipcapError: the file is missing, no text, or in another encoding (with the line and how to convert it).
    """
    try:
        with open_bytes(path) as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            if encoding := _wide_encoding(head):
                with io.TextIOWrapper(file, encoding, newline="\n") as text:
                    yield from text
            elif b"\n" not in head and b"\r" in head.rstrip(b"\r"):
                yield from decode_lines(_old_mac_lines(file.read()), path)
            else:
                yield from decode_lines(file, path)
    except UnicodeError as error:
        raise ClipcapError(f"{shown(path)}: looks like UTF-16, but is not ({reason(error)})") from error
    except UNPACKING_ERRORS as error:
        if isinstance(error, ClipcapError):
            raise
        raise ClipcapError(f"{shown(path)}: {_why(error)}") from error


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by the byte-order mark or by the zeros between the letters; None for all else."""
    for mark, encoding in _BOMS.items():
        if head.startswith(mark):
            return encoding
    start = head[: len(head) // 2 * 2][:64]
    if len(start) >= 4 and not any(start[1::2]) and all(start[::2]):
        return "utf-16-le"
    if len(start) >= 4 and not any(start[::2]) and all(start[1::2]):
        return "utf-16-be"
    return None


def _old_mac_lines(data: bytes) -> list[bytes]:
    return data.splitlines(True) if b"\n" in data else [line + b"\n" for line in data.split(b"\r")]


def decode_lines(lines: Iterable[bytes], path: TextPlace) -> Iterator[str]:
    """The text of lines already split; `path` is named in errors."""
    for number, line in enumerate(lines, 1):
        yield _decode(line.removeprefix(_BOM) if number == 1 else line, path, number)


def _decode(line: bytes, path: TextPlace, number: int) -> str:
    where = f"{shown(path)}: line {number}"
    if b"\0" in line:
        raise ClipcapError(f"{where} holds a NUL byte: not a UTF-8 text file, or a damaged one")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} (0x{line[error.start]:02x})"
        raise ClipcapError(f"{where}, {byte} is not UTF-8; {_conversion(path, 'WINDOWS-1252')}") from error


def _conversion(path: TextPlace, encoding: str) -> str:
    name = shown(os.path.basename(str(path)))
    return f"convert it: iconv -f {encoding} -t UTF-8 '{name}' > 'utf8-{name}'"


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a file"
    return f"cannot be read ({reason(error)})"


class RepeatedKeyError(ClipcapError):
    """A key that is given twice in one object: one of the two values would be lost in silence."""


def read_json(path: TextPlace) -> Any:
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
    except RepeatedKeyError as error:
        raise RepeatedKeyError(f"{where}: {error}") from error
    except ValueError as error:
        raise ClipcapError(f"{where}: not valid JSON ({reason(error)})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise RepeatedKeyError(f"not valid JSON (key {twice!a} is given twice in one object)")
    return result
