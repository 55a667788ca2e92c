"""The files of the batch tab: a table, a text for each photo, and a training set of photos with edited captions."""

from __future__ import annotations

import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path

from clipcap.app.service import Row
from clipcap.errors import ClipcapError
from clipcap.runtime.text import shown


def csv_file(table: str) -> str:
    """Write a table to download; `server.tidy` removes it later."""
    path = _path("captions.csv")
    path.write_text(table, encoding="utf-8", errors="backslashreplace", newline="")
    return str(path)


def text_files(rows: Sequence[Row]) -> str | None:
    """Write a zip with a text of each photo's caption, named as the photo; None where there is no caption.

    Args:
        rows: of `image`, a photo's name, and `caption`; rows without a caption are left out.
    """
    captioned = [(Path(str(row["image"])), str(row["caption"])) for row in rows if row.get("caption")]
    if not captioned:
        return None
    path = _path("captions.zip")
    stems = Counter(photo.stem for photo, _ in captioned)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for photo, caption in captioned:
            alone = stems[photo.stem] == 1  # else the suffix stays: a.jpg.txt beside a.png.txt
            file.writestr(f"{photo.stem if alone else photo.name}.txt", _encoded(caption))
    return str(path)


def training_set(photos: Sequence[Path], rows: Sequence[Row]) -> str:
    """Write a zip of photos, each with a `.txt` of its captions beside it, as `clipcap fit` and taggers read them.

    Args:
        photos: that were captioned.
        rows: of `image`, the name of one of the photos, and `caption`, a caption a line. Photos without a row and
            rows without a caption are left out.
    Raises:
        ClipcapError: no caption is left, a row is none, or its photo is not among the photos.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for photo in photos:
        by_name[photo.name].append(photo)
    chosen: list[tuple[Path, str]] = []
    for name, caption in _captioned(rows):
        if not by_name[name]:
            raise ClipcapError(f"{shown(name)} is not among the photos: caption them again")
        photo = by_name[name].pop(0)  # of one name, in their order
        if caption:
            chosen.append((photo, caption))
    if not chosen:
        raise ClipcapError("no caption to save: write one, or keep a photo")
    path = _path("training_set.zip")
    with zipfile.ZipFile(path, "w") as file:  # photos are compressed already
        for name, (photo, caption) in zip(_distinct([photo.name for photo, _ in chosen]), chosen):
            file.write(photo, name)
            file.writestr(f"{Path(name).stem}.txt", _encoded(caption))
    return str(path)


def _captioned(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(name of a photo, its captions without blank lines) of each row."""
    for row in rows:
        name, caption = (row.get(key) if isinstance(row, dict) else None for key in ("image", "caption"))
        if not isinstance(name, str) or not isinstance(caption, str):
            raise ClipcapError('each row is {"image": the name of a photo, "caption": its caption}')
        yield name, "\n".join(line.strip() for line in caption.splitlines() if line.strip())


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where their stems are alike: each photo has a text of its own."""
    own = {Path(name).stem.lower() for name in names}
    taken: set[str] = set()
    found: list[str] = []
    for name in map(Path, names):
        numbered = (f"{name.stem}-{number}" for number in count(2))
        stems = chain([name.stem], (stem for stem in numbered if stem.lower() not in own))
        stem = next(stem for stem in stems if stem.lower() not in taken)
        taken.add(stem.lower())
        found.append(stem + name.suffix)
    return found


def _encoded(caption: str) -> bytes:
    return (caption + "\n").encode("utf-8", "backslashreplace")


def _path(name: str) -> Path:
    """A new file in the page's own folder, which `server.tidy` keeps clean."""
    return Path(tempfile.mkdtemp()) / name
