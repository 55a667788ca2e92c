"""The captions of a feature file as features of their own: encoded once, a row a caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.features.files import find_features, read_parts
from clipcap.models.encoders.load import load_encoder

CAPTIONS = 16_384  # of a part
BATCH = 256  # captions encoded at once


def holds_texts(path: str | Path) -> bool:
    """Whether features hold embeddings of texts, as a folder of clip-retrieval may."""
    return (find_features(path) / "text_emb").is_dir()


@dataclass(frozen=True)
class CaptionParts:
    """The captions of a feature file, a part at a time, encoded anew at each going through."""

    path: str | Path
    encoder: str | None

    def __iter__(self) -> Iterator[Features]:
        """Features whose rows are captions, with the id and path of their image.

        Raises:
            ClipcapError: the file does not say its encoder, or has no captions.
        """
        found = 0
        encoder = None
        for part in read_parts(self.path, self.encoder):
            if encoder is None:
                name = self.encoder or part.meta.encoder
                if name is None:
                    raise ClipcapError(f"{self.path}: does not say its encoder: name it with --clip_model_type")
                encoder = load_encoder(name)
            numbers = iter(range(len(part.captions)))
            while chosen := list(islice(numbers, CAPTIONS)):
                captions = [part.captions[i] for i in chosen]
                batches = [captions[first : first + BATCH] for first in range(0, len(captions), BATCH)]
                embeddings = torch.cat([encoder.encode_texts(batch).cpu() for batch in batches])  # [M, D]
                rows: list[int] = part.caption_rows[chosen[0] : chosen[-1] + 1].tolist()
                found += len(captions)
                yield Features(
                    embeddings=embeddings,
                    captions=captions,
                    caption_rows=np.arange(len(captions)),
                    image_ids=[part.image_ids[row] for row in rows],
                    image_paths=[part.image_paths[row] for row in rows],
                    meta=replace(part.meta, normalized=False, encoder_weights_id=encoder.weights_id),
                    path=part.path,
                )
        if not found:
            raise ClipcapError(f"{self.path}: has no captions to index")
