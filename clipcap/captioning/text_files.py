"""A text file with the caption for each photo: beside it, or in a folder that mirrors the tree of the photos."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from clipcap.captioning.config import OutputConfig
from clipcap.captioning.decode import Caption
from clipcap.errors import ClipcapError
from clipcap.runtime.files import ManyFiles, writing
from clipcap.runtime.messages import logger
from clipcap.runtime.text import printable

SEPARATOR = ", "  # between a caption and the text that was there, as between tags


class TextFiles:
    """Writes the captions of photos to text files.

    Args:
        options: where, under which suffix, and what to do with an existing text.
        words: what was asked for: photos, globs, folders; photos below a folder keep their place below `out_tree`.
    """

    def __init__(self, options: OutputConfig, words: Sequence[str]):
        self.options = options
        self._roots = [_root(str(word)) for word in words]
        self._files = ManyFiles()

    def place(self, photo: Path) -> Path:
        """The text file of a photo."""
        place = photo
        if self.options.out_tree:
            root = next((root for root in self._roots if photo.is_relative_to(root)), photo.parent)
            place = Path(self.options.out_tree) / photo.relative_to(root)
        return place.with_suffix(self.options.caption_extension)

    def choose(self, photos: Sequence[Path]) -> tuple[list[Path], int]:
        """The photos to caption, and how many are left out because another photo has their text file.

        Of `a.jpg` and `a.png` the first is captioned, and the other named on stderr.
        """
        first: dict[Path, Path] = {}
        for photo in photos:
            owner = first.setdefault(self.place(photo), photo)
            if owner != photo:
                place = self.place(photo)
                logger.warning(f"skipped {printable(str(photo))}: {printable(str(place))} is that of {owner.name}")
        own = list(first.values())
        wanted = [photo for place, photo in first.items() if self.options.existing != "skip" or not place.exists()]
        if len(wanted) < len(own):
            there, suffix = len(own) - len(wanted), self.options.caption_extension
            logger.info(f"{there:,} of {len(own):,} photos have a {suffix} already (--overwrite replaces them)")
        return wanted, len(photos) - len(own)

    def write(self, photo: str, captions: Sequence[Caption]) -> None:
        """Write the captions of a photo, each on a line of its own."""
        path = self.place(Path(photo))
        lines = [" ".join(caption.text.split()) for caption in captions]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._with_existing(path, lines)
            with self._files.replaced(path) as draft:
                draft.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _with_existing(self, path: Path, lines: list[str]) -> list[str]:
        """The lines after or before those of the file; a caption that they hold already is not added again."""
        how = self.options.existing
        if how not in ("append", "prepend") or not path.exists():
            return lines
        try:
            there = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ClipcapError(f"{printable(str(path))}: not UTF-8, so nothing is added: convert it first") from error
        there = [line.strip() for line in there if line.strip()]
        joined = []
        for number in range(max(len(lines), len(there))):
            new = lines[min(number, len(lines) - 1)]
            old = there[min(number, len(there) - 1)] if there else ""
            known = old == new or (
                old.endswith(SEPARATOR + new) if how == "append" else old.startswith(new + SEPARATOR)
            )
            pair = (old, new) if how == "append" else (new, old)
            joined.append(old if known else SEPARATOR.join(filter(None, pair)))
        return joined


def _root(word: str) -> Path:
    """The folder whose tree `--out_tree` mirrors for what a word of --img names."""
    path = Path(word)
    if os.path.isdir(path):
        return path
    if os.path.exists(path) or not glob.has_magic(word):
        return path.parent
    fixed = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)
