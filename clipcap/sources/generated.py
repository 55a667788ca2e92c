"""Generated pictures: known by the table that `clipcap synthesise` writes beside them; for training alone."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from clipcap.errors import ClipcapError

TABLE, COLUMN = "captions.csv", "generated"


def refuse_generated(paths: Iterable[str | Path | None]) -> None:
    """Refuse to hold out generated pictures: scores on them do not apply to real photos.

    Raises:
        ClipcapError: one of the paths is a generated picture; says how to use it.
    """
    folders: dict[str, frozenset[str]] = {}
    for path in paths:
        if path is None:
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _generated_in(Path(folder))
        if name in folders[folder]:
            raise ClipcapError(
                f"{path}: is a generated picture, which cannot serve for validation: train on the set with --extra, "
                f"or leave it out of what is held out"
            )


def _generated_in(folder: Path) -> frozenset[str]:
    """Names of the generated pictures of a folder, by the table in it or above it."""
    for table in (folder / TABLE, folder.parent / TABLE):
        try:
            with open(table, encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file)
                if COLUMN in (rows.fieldnames or ()):
                    return frozenset(os.path.basename(row["image"]) for row in rows if row.get(COLUMN) == "1")
        except (OSError, ValueError, KeyError, csv.Error):
            continue
    return frozenset()
