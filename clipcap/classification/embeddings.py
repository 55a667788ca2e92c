"""Photos as normalised embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.encode_images import Frame, encode_images
from clipcap.runtime.progress import no_bar


def embed_photos(
    encoder: Encoder, photos: Sequence[str | Path | Image.Image], batch_size: int = 32, frame: Frame = "first"
) -> tuple[Tensor, list[int], list[str]]:
    """Encode N photos.

    Returns:
        embeddings float32 [G, D] of norm 1, the numbers of the G photos that could be read, and a line for
        each of the others that states the error.
    """
    parts: list[Tensor] = []
    good: list[int] = []
    bad: list[str] = []
    with tqdm(total=len(photos), desc="encoding", unit="photo", disable=no_bar()) as bar:
        for batch in encode_images(encoder, photos, batch_size, frame=frame):
            if batch.embeddings is not None:
                parts.append(normalize(batch.embeddings, dim=1).cpu())
            good += batch.numbers
            bad += [str(fault) for fault in batch.bad.values()]
            bar.update(len(batch.numbers) + len(batch.bad))
    return torch.cat(parts) if parts else torch.empty(0, encoder.dim), good, bad
