"""Where captions go: the terminal, a file written line by line, a text file for each photo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipcap.captioning.config import CaptionConfig
from clipcap.captioning.decode import Caption
from clipcap.captioning.line_file import LineFile, line_format
from clipcap.captioning.text_files import TextFiles
from clipcap.runtime.interruption import states_what_is_left
from clipcap.runtime.json_text import to_json
from clipcap.runtime.text import printable


@dataclass(frozen=True)
class Destination:
    """Where the captions of a run go."""

    emit: Callable[[str, Sequence[Caption]], None]  # of an image, by its name
    done: Callable[[str], bool] = lambda name: False  # whether an earlier run has written the image's captions


@contextmanager
def open_destination(config: CaptionConfig, texts: TextFiles | None, many: bool) -> Iterator[Destination]:
    """Where captions go. Files are written line by line, so that an interrupted run keeps what it has."""
    output = config.output
    if texts is not None:
        with states_what_is_left(
            lambda: "the texts written are kept: the same command continues with the other photos"
        ):
            yield Destination(texts.write)
    elif output.out is None:
        yield Destination(lambda name, captions: _print(name, captions, many))
    else:
        path = Path(output.out)
        file = LineFile(path, line_format(path, output.out_format), _fingerprint(config))
        with file, states_what_is_left(file.left):
            yield Destination(file.emit, file.take)


def _fingerprint(config: CaptionConfig) -> str:
    """A checksum of all that decides the lines of a file but for the images."""
    chosen = {k: v for k, v in sorted(config.flat().items()) if k not in ("batch_size", "device", "out")}
    return hashlib.sha256(to_json(chosen, default=str).encode()).hexdigest()


def _print(name: str, captions: Sequence[Caption], many: bool) -> None:
    for caption in captions:
        text = printable(caption.text)
        print(f"{printable(name)}\t{text}" if many else text, flush=True)
