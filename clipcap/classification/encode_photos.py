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

from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.encode_images import encode_images


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
        for batch in encode_images(encoder, photos, batch_size, frame=frame):
            good += batch.numbers
            bad |= {number: fault.reason for number, fault in batch.bad.items()}
            if batch.embeddings is not None:
                parts.append(normalize(batch.embeddings, dim=1).cpu())  # [B, D]
            bar.update(len(batch.numbers) + len(batch.bad))
    return torch.cat(parts) if parts else torch.empty(0, encoder.dim), good, bad
