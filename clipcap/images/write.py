"""Pictures as files: encoded in memory, so that a full disk is an error and never a picture that is cut short."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image


def write_picture(picture: Image.Image, path: Path, kind: str, **options: Any) -> None:
    """Write a picture as a file of this kind, such as PNG.

    Pillow's own `save` hands the file to C code, which takes a write of some of the bytes for one of all of them.

    Args:
        picture: in a mode that the kind can hold.
        path: of the file; an existing one is overwritten.
        kind: as Pillow names it.
        options: of Pillow's `save`.
    Raises:
        OSError: the disk is full, or the place cannot be written.
    """
    encoded = io.BytesIO()
    picture.save(encoded, kind, **options)
    path.write_bytes(encoded.getbuffer())
