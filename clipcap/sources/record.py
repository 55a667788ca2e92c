"""What every source yields: one record per image, with all of its captions."""

from __future__ import annotations

from dataclasses import dataclass

from clipcap.images.ref import ImageRef


@dataclass(frozen=True, slots=True)  # there may be millions
class Record:
    """One image with its captions; `split` is the set's own split, where it has one."""

    image_id: str
    image: ImageRef
    captions: tuple[str, ...]
    split: str | None = None
