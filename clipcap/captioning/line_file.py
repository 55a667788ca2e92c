"""A file of captions, a line per image, that an interrupted run continues: JSON Lines, CSV, metadata of trainers."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from clipcap.captioning.decode import Caption
from clipcap.errors import ClipcapError
from clipcap.runtime.files import replaced_file
from clipcap.runtime.json_text import to_json
from clipcap.runtime.messages import logger
from clipcap.runtime.places import sole_writer
from clipcap.runtime.text import as_cell

HEAD = ["image", "caption", "logprob", "clip_score"]


class LineFormat(NamedTuple):
    """How an image's line is written, and how the images of lines are read back."""

    lines: Callable[[str, Sequence[Caption], bool], str]  # of an image, its captions, whether it is the first
    images: Callable[[str], list[str]]  # of whole lines, as `key` gives them
    key: Callable[[str], str]  # how a line names an image


class LineFile:
    """A file written line by line. What it held before stays until there is a first line.

    Beside a file that is not finished lies `NAME.unfinished`, with what decides its lines: a run with the same
    continues it, and any other writes it anew.

    Args:
        path: the file.
        format: of its lines.
        fingerprint: what decides the lines.
    """

    def __init__(self, path: Path, format: LineFormat, fingerprint: str = ""):
        self.path, self.format, self.fingerprint = path, format, fingerprint
        self.marker = path.with_name(f"{path.name}.unfinished")
        self.count = 0  # lines of captions in the file
        with ExitStack() as opened:
            opened.enter_context(sole_writer(path))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = opened.enter_context(path.open("ab", buffering=0))
                self._done = self._found()
            except OSError as error:
                raise ClipcapError(f"--out {path}: cannot be written: {error.strerror}") from error
            self._opened = opened.pop_all()
        self.empty = not self._done
        self.count = sum(self._done.values())

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.marker.unlink(missing_ok=True)
        self._opened.close()

    def _found(self) -> Counter[str]:
        """The images of an unfinished file of this command; a line that was cut off is removed."""
        try:
            ours = self.marker.read_text(encoding="utf-8") == self.fingerprint
        except (OSError, ValueError):
            ours = False
        text = self.path.read_bytes() if ours else b""
        while text:
            text = text[: text.rfind(b"\n") + 1]
            try:
                found = Counter(self.format.images(text.decode("utf-8")))
            except (ValueError, KeyError, IndexError, TypeError, csv.Error):
                text = text[:-1]
                continue
            self._file.truncate(len(text))
            return found
        return Counter()

    def take(self, name: str) -> bool:
        """Whether the file has the image's line already; a line counts for one image."""
        key = self.format.key(name)
        found = self._done[key] > 0
        self._done[key] -= found
        return found

    def emit(self, name: str, captions: Sequence[Caption]) -> None:
        """Write the captions of an image."""
        self.write(self.format.lines(name, captions, self.empty))
        self.count += 1

    def write(self, text: str) -> None:
        """Add whole lines, or nothing.

        Raises:
            ClipcapError: the disk is full.
        """
        data = text.encode("utf-8", "backslashreplace")  # file names may be no UTF-8
        try:
            if self.empty:
                self._begin()
            start, self.empty = self._file.seek(0, os.SEEK_END), False
            if self._file.write(data) < len(data):  # as much as there was room for
                self._file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ClipcapError(
                f"--out {self.path}: cannot be written: {error.strerror}; the lines before are kept"
            ) from error

    def _begin(self) -> None:
        if size := os.fstat(self._file.fileno()).st_size:
            logger.info(f"{self.path}: replaces the file that was there ({size:,} bytes)")
        self._file.truncate(0)
        with replaced_file(self.marker) as draft:
            draft.write_text(self.fingerprint, encoding="utf-8")

    def left(self) -> str:
        """What an interrupted run leaves."""
        return f"{self.path} has {self.count:,} lines: the same command continues with the other images"


def line_format(path: Path, kind: str) -> LineFormat:
    """The format of a file of this name; `kind` as --out_format has it."""
    if kind == "imagefolder":
        return LineFormat(_pairs("file_name", "text", lambda name: _below(name, path)), _read("file_name"),
                          lambda name: _below(name, path))  # fmt: skip
    if kind == "kohya":
        return LineFormat(_pairs("image_path", "caption", os.path.abspath), _read("image_path"), os.path.abspath)
    if path.suffix == ".csv":
        return LineFormat(csv_lines, _csv_images, as_cell)
    return LineFormat(_json_lines, _read("image"), str)


def _below(name: str, metadata: Path) -> str:
    """A photo by its path below the folder of the metadata, as `imagefolder` wants it."""
    relative = os.path.relpath(name, metadata.parent)
    if relative.startswith(os.pardir):
        raise ClipcapError(
            f"--out_format imagefolder: {name} is not below {metadata.parent}: write {metadata.name} into the folder "
            f"of the photos"
        )
    return Path(relative).as_posix()


def _pairs(image: str, text: str, key: Callable[[str], str]) -> Callable[[str, Sequence[Caption], bool], str]:
    """Lines of an image's name and its caption; one for each caption."""

    def lines(name: str, captions: Sequence[Caption], first: bool) -> str:
        return "".join(to_json({image: key(name), text: c.text}, ensure_ascii=False) + "\n" for c in captions)

    return lines


def _read(name: str) -> Callable[[str], list[str]]:
    """Reads the images of JSON Lines; the lines of several captions of an image follow each other, and count once."""

    def images(text: str) -> list[str]:
        found = [str(json.loads(line)[name]) for line in text.split("\n") if line]
        if name == "image":
            return found
        return [image for i, image in enumerate(found) if i == 0 or image != found[i - 1]]

    return images


def _csv_images(text: str) -> list[str]:
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    if rows[:1] != [HEAD] or any(len(row) != len(HEAD) for row in rows):
        raise ValueError("not our lines")
    return [row[0] for row in rows[1:]]


def _json_lines(name: str, captions: Sequence[Caption], first: bool) -> str:
    return to_json(as_json(name, captions), ensure_ascii=False) + "\n"


def as_json(name: str, captions: Sequence[Caption]) -> dict:
    """One image's line of a .jsonl file, best caption first."""
    rows = [{"caption": c.text, "logprob": c.logprob, "clip_score": c.clip_score} for c in captions]
    line = {"image": name, "caption": captions[0].text, "captions": rows}
    if retrieved := captions[0].retrieved:
        line["retrieved"] = [one._asdict() for one in retrieved]
    return line


def csv_lines(name: str, captions: Sequence[Caption], first: bool) -> str:
    """One image's line of a .csv file, after its head where it is the first."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    if first:
        writer.writerow(HEAD)
    best = captions[0]
    score = "" if best.clip_score is None else f"{best.clip_score:.4f}"
    writer.writerow([as_cell(name), as_cell(best.text), f"{best.logprob:.4f}", score])
    return lines.getvalue()
