"""Images that were left out of a run: how many are too many, and the list of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.text import as_cell


def too_many(bad: int, images: int, max_bad: float) -> bool:
    """Whether `bad` of so many images are more than the share `max_bad` allows: one always is, unless it is 0."""
    return bad > (max_bad and max(1, max_bad * images))


def write_errors(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write the list as CSV with a header: path, reason; a ' precedes text that a spreadsheet would run.

    Raises:
        ClipcapError: it cannot be written.
    """
    how: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with writing(path), replaced_file(path) as draft, draft.open("w", **how) as file:
        csv.writer(file).writerows([("path", "reason"), *(map(as_cell, row) for row in rows)])
