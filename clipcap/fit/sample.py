"""Features of a few photos, stored as those of all: what a run's time and disk are measured with before it parses."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.images.workers import at_once
from clipcap.models.encoders.encode_images import encode_images
from clipcap.models.encoders.load import load_encoder
from clipcap.sources.record import Record

WARMING, TIMED = 4, 16  # photos encoded before the clock starts, and with it
TOGETHER = 4  # as `parse` encodes on a CPU


@dataclass(frozen=True)
class Sample:
    """Feature files in which all rows are those of a few photos, and what encoding took."""

    files: dict[str, Path]  # by split
    load: float  # seconds, of the encoder
    photo: float  # seconds, of one photo

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in self.files.values())


def write_sample(records: Mapping[str, Sequence[Record]], encoder_name: str, folder: Path) -> Sample:
    """Encode a few photos, and write feature files of the records of each split with these vectors in turn.

    Args:
        records: of each split, with their captions.
        encoder_name: as of `clipcap parse`.
        folder: of the files, a new one.
    """
    began = time.monotonic()
    encoder = load_encoder(encoder_name, "auto")
    load, everything = time.monotonic() - began, [record for several in records.values() for record in several]
    chosen = everything[:: max(1, len(everything) // (WARMING + TIMED))][: WARMING + TIMED]
    vectors, seconds, threads = [], 0.0, at_once()
    began = time.monotonic()
    for batch in encode_images(encoder, [record.image for record in chosen], TOGETHER, threads=threads):
        if batch.embeddings is not None:
            vectors.append(batch.embeddings.float().cpu())
        now = time.monotonic()
        seconds, began = seconds + (now - began) * (batch.numbers[:1] != [0]), now  # the first one warms up
    rows = torch.cat(vectors) if vectors else torch.randn(1, encoder.dim)  # [n, D]; `parse` names bad photos
    files = {}
    for split, several in records.items():
        files[split] = folder / f"photos_{split}.pkl"
        write_features(
            files[split],
            embeddings=rows[torch.arange(len(several)) % len(rows)],  # [N, D]
            image_ids=[record.image_id for record in several],
            image_paths=[os.path.abspath(str(record.image)) for record in several],
            captions=[record.captions for record in several],
            meta=FeatureMeta(encoder=encoder.name, encoder_weights_id=encoder.weights_id, source="a sample"),
        )
    return Sample(files, load, seconds / max(1, len(chosen) - TOGETHER))
