"""What the steps of a fit have written: a rerun compares, and does a step again whose files are damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.json_text import to_json

CARD = "README.md"  # somebody may well edit it


def write_record(mark: Path, folder: Path) -> None:
    """Note a digest of every file in the folder of a step that has just ended.

    Raises:
        ClipcapError: `mark` cannot be written.
    """
    files = {
        path.relative_to(mark.parent).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CARD and not _is_hidden(path.relative_to(folder))
    }
    with writing(mark), replaced_file(mark) as draft:
        draft.write_text(to_json(files, indent=1) + "\n", encoding="utf-8")


def damaged_files(mark: Path) -> dict[Path, str]:
    """The files that are not as their record says, with a digest of what is there now (empty: nothing).

    An empty record is of an earlier version, which stored none: nothing is known of its files. A damaged record
    vouches for no file, and is returned itself.
    """
    text = mark.read_bytes()
    try:
        files = dict(json.loads(text)) if text else {}
    except (ValueError, TypeError, RecursionError):
        return {mark: ""}
    now = {mark.parent / name: (_digest(mark.parent / name), digest) for name, digest in files.items()}
    return {path: found for path, (found, digest) in now.items() if found != digest}


def still_damaged(before: dict[Path, str]) -> list[Path]:
    """Which of the damaged files are there as they were."""
    return [path for path, digest in before.items() if digest and _digest(path) == digest]


def _digest(path: Path) -> str:
    """Empty where there is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _is_hidden(path: Path) -> bool:
    """Whether it is, or lies in, what a killed run has left."""
    return any(part.startswith(".") for part in path.parts)
