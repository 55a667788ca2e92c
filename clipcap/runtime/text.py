"""Text for terminals, spreadsheets and error messages: escaped, shortened, on one line."""

from __future__ import annotations

import re
import unicodedata

# What a spreadsheet may run (OWASP, CSV injection), and what `as_cell` has marked already.
_FORMULA = re.compile(r"'*(?:[\s\0]*[=+\-@＝＋－＠]|[\t\r\n\0])")

# A path from the root: after a blank, a quote, a bracket or a colon, folders that may hold blanks, and a name.
_WHOLE_PATH = re.compile(r"""(?<![^\s('"=:])(?:[A-Za-z]:[\\/]|/)(?:[^/\\\n:,;()'"]+[/\\])+([^/\\\s:,;()'"]*)""")


def printable(text: str) -> str:
    """Text as a terminal may show it: line breaks, escape sequences and changes of direction written as escapes."""
    shown = (c if _harmless(c) else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(shown)


def in_short(text: str, characters: int = 120) -> str:
    """The beginning of a text as a terminal may show it, in one line."""
    return printable(text if len(text) <= characters else text[: characters - 1] + "…")


def _harmless(character: str) -> bool:
    joiner = character in "\u200c\u200d"  # of emoji, Persian, Indian scripts
    return character.isprintable() or joiner or unicodedata.category(character) == "Zs"


def as_cell(text: str) -> str:
    """Text for a CSV: a ' before what a spreadsheet would run as a formula, so that it shows it instead."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell, 1) else cell


def one_line(error: BaseException) -> str:
    """The message of an exception of another library, in one line of bounded length."""
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:300]


def shown(name: object) -> str:
    """A name as it is, or quoted with escapes where it would not print."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def without_folders(text: str) -> str:
    """A text with the names alone of the files whose whole paths it holds, for pages that are shared."""
    return _WHOLE_PATH.sub(r"\1", text)


def reason(error: Exception) -> str:
    """What an error of the system or of a library says, short and on one printable line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    return shown(text or type(error).__name__)


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 image`, `2,000 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"  # numpy's whole numbers count too


def byte_size(count: float) -> str:
    """A number of bytes with its unit: `380 kB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
