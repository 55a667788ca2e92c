"""Where captions go: the terminal, a .jsonl or .csv file written line by line, a .txt beside each photo."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clipcap.captioning.config import OutputConfig
from clipcap.captioning.decode import Caption
from clipcap.errors import ClipcapError
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.json_text import to_json
from clipcap.runtime.places import sole_writer
from clipcap.runtime.text import as_cell, printable

Emit = Callable[[str, Sequence[Caption]], None]


@contextmanager
def _output(config: OutputConfig, many: bool) -> Iterator[Emit]:
    """Where captions go. Files are written line by line, so that an interrupted run keeps what it has."""
    if config.sidecar:
        yield _write_sidecar
    elif config.out is None:
        yield lambda name, captions: _print(name, captions, many)
    else:
        lines = csv_lines if config.out.endswith(".csv") else _json_lines
        with LineFile(Path(config.out)) as file:
            yield lambda name, captions: file.write(lines(name, captions, first=file.empty))


class LineFile:
    """A file written line by line; what it held before is kept until there is a first line."""

    def __init__(self, path: Path):
        self.path, self.empty = path, True
        with ExitStack() as opened:
            opened.enter_context(sole_writer(path))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = opened.enter_context(path.open("ab", buffering=0))
            except OSError as error:
                raise ClipcapError(f"--out {path}: cannot be written: {error.strerror}") from error
            self._opened = opened.pop_all()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def write(self, text: str) -> None:
        """Add whole lines, or nothing.

        Raises:
            ClipcapError: the disk is full.
        """
        data = text.encode("utf-8", "backslashreplace")  # file names may be no UTF-8
        try:
            if self.empty:
                self._file.truncate(0)
            start, self.empty = self._file.seek(0, os.SEEK_END), False
            if self._file.write(data) < len(data):  # as much as there was room for
                self._file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ClipcapError(
                f"--out {self.path}: cannot be written: {error.strerror}; the lines before are kept"
            ) from error


def _json_lines(name: str, captions: Sequence[Caption], first: bool) -> str:
    return to_json(as_json(name, captions), ensure_ascii=False) + "\n"


def as_json(name: str, captions: Sequence[Caption]) -> dict:
    """One image's line of a .jsonl file, best caption first."""
    rows = [{"caption": c.text, "logprob": c.logprob, "clip_score": c.clip_score} for c in captions]
    return {"image": name, "caption": captions[0].text, "captions": rows}


def csv_lines(name: str, captions: Sequence[Caption], first: bool) -> str:
    """One image's line of a .csv file, after its head where it is the first."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    if first:
        writer.writerow(["image", "caption", "logprob", "clip_score"])
    best = captions[0]
    score = "" if best.clip_score is None else f"{best.clip_score:.4f}"
    writer.writerow([as_cell(name), as_cell(best.text), f"{best.logprob:.4f}", score])
    return lines.getvalue()


def _print(name: str, captions: Sequence[Caption], many: bool) -> None:
    for caption in captions:
        text = printable(caption.text)
        print(f"{printable(name)}\t{text}" if many else text, flush=True)


def _write_sidecar(name: str, captions: Sequence[Caption]) -> None:
    path = Path(name).with_suffix(".txt")
    with writing(path), replaced_file(path, one_of_many=True) as draft:
        draft.write_text(captions[0].text + "\n", encoding="utf-8")
