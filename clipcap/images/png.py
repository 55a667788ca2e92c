"""PNG files without embedded texts and colour profiles."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

_SIGNATURE_BYTES = 8
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp\0"
_MAX_XMP_BYTES = 2**20


def without_png_metadata(stream: BinaryIO) -> BinaryIO:
    """A PNG without texts and colour profile; the stream itself where it has none.

    Programs that draw pictures store their whole workflow there, megabytes of it; Pillow refuses sound pixels
    beside a text that is too long, damaged, or packed too well. XMP stays, as it may say which way is up.
    """
    stream.seek(0)
    head = stream.read(_SIGNATURE_BYTES)
    kept: list[tuple[int, int]] = [(0, len(head))]
    dropped = False
    position = len(head)
    end = stream.seek(0, io.SEEK_END)
    while position < end:
        stream.seek(position)
        start = stream.read(8 + len(_XMP))
        if len(start) < 8:
            break
        length, kind = struct.unpack(">I4s", start[:8])
        size = min(12 + length, end - position)  # length, kind, data, checksum
        xmp = kind == b"iTXt" and start[8:] == _XMP and length <= _MAX_XMP_BYTES
        if kind == b"iCCP" or (kind in _TEXTS and not xmp):
            dropped = True
        else:
            kept.append((position, size))
        position += size
    if not dropped:
        return stream
    picture = io.BytesIO()
    for start, size in kept:
        stream.seek(start)
        picture.write(stream.read(size))
    picture.seek(0)
    return picture
