"""Small pictures, and sets of them as people have them."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw

from clipcap.sources.collector import Source
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import READERS

TEXTS = ("a red kite over a field", "two cups on a shelf", "snow on a bench", "a tram at a stop")


def picture(number: int = 0) -> Image.Image:
    """A drawn picture; every number has another."""
    image = Image.new("RGB", (40, 30), (200, 210, 40 * number % 256))
    ImageDraw.Draw(image).ellipse((4, 4, 20 + number, 22), fill=(30 * number % 256, 90, 20))
    return image


@cache
def encoded(number: int = 0, kind: str = "JPEG") -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    picture(number).save(buffer, kind)
    return buffer.getvalue()


def base64_of(number: int = 0) -> str:
    """The picture as text."""
    return base64.b64encode(encoded(number)).decode()


def draw(*paths: Path) -> None:
    """A JPEG under each name."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))


def album(folder: Path, suffix: str = ".jpg", count: int = len(TEXTS), start: int = 1) -> Path:
    """Photos 1.jpg, 2.jpg, ... in a folder."""
    draw(*(folder / f"{i}{suffix}" for i in range(start, start + count)))
    return folder


def put(path: Path, content: str | bytes | list | dict) -> Path:
    """A file of text, bytes or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tar_of(path: Path, members: dict[str, bytes | str]) -> Path:
    """A tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def read(path: Path | str, source: str = "custom", **options) -> Source:
    """A set as the reader gives it."""
    return READERS[source](SourceConfig(data_path=str(path), **{k: str(v) for k, v in options.items()}))


def captions(source: Source) -> list[tuple[str, ...]]:
    """The captions of each image, in order; every image is there."""
    for record in source.records:
        with record.image.open() as stream:
            Image.open(stream).load()
    return [record.captions for record in source.records]


ONE_EACH = [(text,) for text in TEXTS]
