"""Where an image lies: a file, or a member of a tar."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)  # there may be millions
class ImageRef:
    """Where an image lies: a file, or a member of an uncompressed tar.

    Opening costs one seek in either case, so that workers can read images in any order.
    """

    path: Path
    member: str | None = None
    offset: int = 0
    size: int = -1

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    def open(self) -> BinaryIO:
        """The image's bytes as a binary stream.

        Raises:
            OSError: the file is missing or cannot be read.
        """
        if self.member is None:
            return open(self.path, "rb")
        with open(self.path, "rb") as tar:
            tar.seek(self.offset)
            return io.BytesIO(tar.read(self.size))
