"""Files in folders: listed once, looked up by name, in an order people expect."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.runtime.text import reason, shown

_DIGITS = re.compile(r"([0-9]+)")
_HIDDEN = (".", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")
_DIGIT = re.compile(r"[0-9]")


def natural_key(text: str) -> tuple:
    """Sort key that puts `2.jpg` before `10.jpg`; equal only for equal strings."""
    pieces: list = _DIGITS.split(text)
    for i in range(1, len(pieces), 2):  # digits compare as numbers; int() itself refuses very long ones
        digits = pieces[i].lstrip("0")
        pieces[i] = (len(digits), digits)
    return pieces, text


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted by `natural_key`, which for millions would take more memory than all else that is known of them.

    Names alike but for their digits, as in webdataset tars, sort the same as plain text.
    """
    names = list(names)
    alike = len({_DIGIT.sub("0", name) for name in names}) <= 1
    return sorted(names) if alike else sorted(names, key=natural_key)


def require_folder(path: str | Path, flag: str) -> Path:
    """`path` as a folder that exists; `flag` is named in the error."""
    if not str(path):
        raise ClipcapError(f"{flag} is missing: give the folder (or file) of the image-caption set")
    if not os.path.isdir(path):
        nothing = "no such file or folder" if flag == "--data_path" else "no such folder"
        raise ClipcapError(f"{flag} {shown(path)}: {'is a file, not a folder' if os.path.exists(path) else nothing}")
    return Path(path)


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """(subfolders, files) of a folder by name, in natural order.

    One listing, no system call per file. Hidden names are left out: macOS keeps a `._1.jpg` beside `1.jpg`,
    and it is no photo; so are the folders in which systems keep their own files.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(_HIDDEN):
                    (folders if _is_folder(entry) else files).append(entry.name)
    except (OSError, ValueError) as error:  # ValueError: a name that no system takes
        raise ClipcapError(f"{shown(folder)}: cannot list this folder ({reason(error)})") from error
    return sorted(folders, key=natural_key), sorted(files, key=natural_key)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: as a file it is named when it is opened
        return False


def subfolders(folder: Path, names: Sequence[str]) -> list[Path]:
    """The subfolders called one of `names`, whatever their capitals, in the order of `names`."""
    there = list_folder(folder)[0]
    return [folder / found for name in names for found in there if found.lower() == name.lower()]


def photo_folders(root: Path, names: Sequence[str], images: str | None) -> list[Path]:
    """Where photos may lie: in --images, else in `root`, and in their subfolders called one of `names`."""
    base = require_folder(images, "--images") if images else root
    return [base, *subfolders(base, names)]


def walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, in natural order; links are followed, but no folder is entered twice."""
    entered = set()
    pending = [folder]
    while pending:
        here = pending.pop()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        folders, files = list_folder(here)
        yield from (here / name for name in files)
        pending.extend(here / name for name in reversed(folders))


def counted_suffixes(names: Iterable[str], most: int = 6) -> str:
    """How many files there are of each suffix, the commonest first: `.mp4 3, .pdf 1`."""
    counts = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in names)
    listed = [f"{shown(suffix)} {count:,}" for suffix, count in counts.most_common(most)]
    return ", ".join(listed + ["..."] * (len(counts) > most))
