"""Texts that are packed with gzip, bzip2, xz or zip, read as they are unpacked, to no more than their size allows."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

_BESIDE = re.compile("^__MACOSX/|/$")  # in a zip: what macOS adds, and folders


def _open_zip(path: Path) -> zipfile.ZipExtFile:
    """The one file in an archive; what macOS adds beside it does not count."""
    try:
        with zipfile.ZipFile(path) as archive:  # stays open behind what is returned
            files = [one for one in archive.infolist() if not _BESIDE.search(one.filename)]
            if len(files) != 1:
                raise OSError(f"holds {len(files):,} files: unpack it first")
            return cast(zipfile.ZipExtFile, archive.open(files[0]))
    except RuntimeError as error:  # encrypted, or packed in a way that Python does not know
        raise OSError(f"unpack it first: {error}") from error


PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": _open_zip}
UNPACKING_ERRORS = (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_MAX_GAIN = 64  # times the size on disk: captions pack to a tenth or so, and more is an attack
_ALWAYS = 2**20  # bytes


def unpacked_name(name: str) -> str:
    """`captions.csv` for `captions.csv.gz`, and any other name as it is."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in PACKED else name


def open_packed(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its suffix says that it is packed.

    Raises:
        OSError: it is missing, damaged, or unpacks to 64 times its size.
    """
    unpack = PACKED.get(path.suffix.lower())
    if unpack is None:
        return open(path, "rb")
    limit = max(_ALWAYS, _MAX_GAIN * os.path.getsize(path))
    return cast(BinaryIO, io.BufferedReader(_Bounded(unpack(path), limit)))


class _Bounded(io.RawIOBase):
    """A stream that ends in an error beyond a number of bytes."""

    def __init__(self, inner: io.BufferedIOBase, limit: int):
        self._inner, self._limit, self._read = inner, limit, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._read = self._inner.seek(offset, whence)
        return self._read

    def readinto(self, buffer: Any, /) -> int:
        count = self._inner.readinto(buffer)
        self._read += count
        if self._read > self._limit:
            raise OSError(f"unpacks to more than {_MAX_GAIN} times its size")
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()
