"""Photos as normalised embeddings, batch by batch, and why some have none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from clipcap.images.read import ImageError, open_image
from clipcap.models.encoders.base import Encoder


def encode_photos(
    encoder: Encoder,
    photos: Sequence[str | Path | Image.Image],
    batch_size: int = 32,
    frame: Literal["first", "middle"] = "first",
) -> tuple[Tensor, list[int], dict[int, str]]:
    """Encode photos.

    Args:
        encoder: frozen.
        photos: paths or pictures, N.
        batch_size: photos decoded and encoded together.
        frame: which frame of an animation counts.
    Returns:
        embeddings float32 [G, D] of norm 1, the numbers of the G photos that could be read, and why the others
        could not.
    """
    parts: list[Tensor] = []
    good: list[int] = []
    bad: dict[int, str] = {}
    with tqdm(total=len(photos), desc="encoding", unit="photo", disable=None) as bar:
        for first in range(0, len(photos), batch_size):
            pixels = []
            for number in range(first, min(first + batch_size, len(photos))):
                try:
                    pixels.append(encoder.preprocess(open_image(photos[number], frame=frame)))  # [3, R, R]
                    good.append(number)
                except ImageError as error:
                    bad[number] = error.reason
                bar.update()
            if pixels:
                parts.append(normalize(encoder.encode_images(torch.stack(pixels)), dim=1).cpu())
    return torch.cat(parts) if parts else torch.empty(0, encoder.dim), good, bad
