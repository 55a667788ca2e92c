"""Plain parsing, as the original: for every caption its photo is opened and encoded again, one at a time."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from clip.clip import _transform
from PIL import Image
from torch import Tensor, nn

from clipcap.sources.record import Record


@torch.no_grad()
def parse(network: nn.Module, records: Sequence[Record], out: Path) -> Tensor:
    """Write a feature file of the original's kind; its embeddings [captions, D]."""
    preprocess = _transform(network.visual.input_resolution)
    rows, entries = [], []
    for record in records:
        for caption in record.captions:
            pixels = preprocess(Image.open(record.image.path))[None]  # [1, 3, R, R]
            entries.append({"image_id": record.image_id, "caption": caption, "clip_embedding": len(rows)})
            rows.append(network.encode_image(pixels))
    embeddings = torch.cat(rows)
    with out.open("wb") as file:
        pickle.dump({"clip_embedding": embeddings, "captions": entries}, file)
    return embeddings
