"""Conceptual Captions: a TSV of caption and URL, and images already downloaded under their row number."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import require_folder
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import as_cell, from_cell, shown
from clipcap.sources.collector import Collector, Source
from clipcap.sources.config import SourceConfig
from clipcap.sources.faults import Faults
from clipcap.sources.textfiles import read_lines

# The names the set is distributed under; its images go to folders called like the split.
TSV_FILES = {"train": "Train_GCC-training.tsv", "val": "Validation_GCC-1.1.0-Validation.tsv"}
FAILURES_FILE = "download_errors.csv"
_URL_SCHEMES = ("http://", "https://")


def read(config: SourceConfig) -> Source:
    """Read --data_path: a TSV with its images beside it, or the folder that holds train and val.

    Images that the downloader found to be gone for good (`download_errors.csv`) are left out.
    """
    collector = Collector("conceptual")
    sets = find_sets(config)
    for split, (tsv, folder) in sets.items():
        require_folder(folder, "--images")
        gone = known_failures(folder)
        own_split, prefix = (split, f"{split}/") if len(sets) > 1 else (None, "")
        left_out = 0
        for number, (caption, url) in enumerate(read_links(tsv, collector.faults)):
            if not url:  # a broken row
                continue
            if gone.get(number) == url:
                left_out += 1
            else:
                collector.add(f"{prefix}{number:08d}", ImageRef(folder / image_name(number)), [caption], own_split)
        collector.leave_out(left_out, "image", f"gone for good ({shown(folder / FAILURES_FILE)})", "gone for good")
    return collector.finish(config)


def find_sets(config: SourceConfig) -> dict[str, tuple[Path, Path]]:
    """(TSV, folder of its images) of each split; the folder need not exist yet."""
    path = Path(config.captions or config.data_path)
    if config.captions or path.is_file():
        split = next((split for split, name in TSV_FILES.items() if name == path.name), path.stem)
        return {split: (path, Path(config.images) if config.images else path.parent / split)}
    root = require_folder(config.data_path, "--data_path")
    base = Path(config.images) if config.images else root
    sets = {split: (root / name, base / split) for split, name in TSV_FILES.items() if (root / name).is_file()}
    if not sets:
        raise ClipcapError(
            f"{shown(root)}: neither {' nor '.join(TSV_FILES.values())} is here: give the TSV itself as --data_path"
        )
    return sets


def image_name(number: int) -> str:
    """File name of the image of a row; rows count from 0."""
    return f"{number:08d}.jpg"


def read_links(tsv: Path, faults: Faults | None = None) -> Iterator[tuple[str, str]]:
    """(caption, url) of each row. CC12M, which has them the other way round, and a header line are understood.

    Quotes are part of the caption: the set is distributed without any quoting. A broken row counts among `faults` and
    keeps its number, with an empty caption: images are called by the number of their row.
    """
    faults = Faults() if faults is None else faults
    rows = ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(read_lines(tsv), 1))
    for number, cells in rows:
        if cells == [""] or (number == 1 and {cell.lower() for cell in cells} == {"caption", "url"}):
            continue
        if len(cells) != 2:
            faults.add(f"{shown(tsv)}: line {number}", f"{len(cells)} fields, expected caption<TAB>url")
            yield "", ""
        else:
            first, second = cells
            yield (second, first) if first.lower().startswith(_URL_SCHEMES) else (first, second)


def known_failures(folder: Path) -> dict[int, str]:
    """URL of each row whose image is gone for good, as noted in the folder of the images."""
    path = folder / FAILURES_FILE
    lines = read_lines(path) if path.is_file() else ()
    # Line by line: one cut short by a kill is skipped (its image is tried again) and spoils no other.
    rows = [_cells(line) for line in lines]
    return {int(row[0]): from_cell(row[1]) for row in rows if len(row) == 3 and row[0].isdecimal()}


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


class FailureLog:
    """Appends to the list of images that are gone for good, from several threads, a line at a time."""

    def __init__(self, folder: Path):
        path = folder / FAILURES_FILE
        torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115
        self._file.write("\n" * torn)
        self._lock = threading.Lock()

    def __enter__(self) -> FailureLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, number: int, url: str, reason: str) -> None:
        """Note an image; on disk when this returns."""
        with self._lock:
            csv.writer(self._file).writerow([number, as_cell(url), as_cell(" ".join(reason.split()))])
            self._file.flush()
