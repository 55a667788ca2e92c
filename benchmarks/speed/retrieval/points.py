"""The set of the retrieval benchmark: clusters in 64 dimensions, turned into 512, with noise in all of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipcap.features.feature_set import Content, FeatureMeta
from clipcap.features.files import write_parts

DIM, LATENT, CLUSTERS = 512, 64, 20_000
SHARD = 100_000


@cache
def _space() -> tuple[np.ndarray, np.ndarray]:
    """(the turn [64, 512], the centres of the clusters [20000, 64])."""
    generator = np.random.default_rng(0)
    turn = generator.standard_normal((LATENT, DIM), np.float32) / np.sqrt(LATENT)
    return turn, generator.standard_normal((CLUSTERS, LATENT), np.float32)


def points(count: int, seed: int) -> np.ndarray:
    """float16 [count, 512]."""
    turn, centres = _space()
    generator = np.random.default_rng(seed)
    latent = centres[generator.integers(0, CLUSTERS, count)]
    latent = latent + 0.7 * generator.standard_normal((count, LATENT), np.float32)
    return (latent @ turn + 0.1 * generator.standard_normal((count, DIM), np.float32)).astype(np.float16)


def queries(count: int) -> Tensor:
    """New points of the same kind, float32 [count, 512]."""
    return torch.from_numpy(points(count, seed=10**9)).float()


def write_set(folder: Path, rows: int) -> None:
    """A feature folder in shards of 100,000 rows, with ids, paths and captions of ordinary length."""

    def parts() -> Iterator[Content]:
        for first in range(0, rows, SHARD):
            numbers = range(first, min(first + SHARD, rows))
            yield Content(
                points(len(numbers), seed=1 + first),
                [f"{i:012d}" for i in numbers],
                [f"/data/photos/{i // 1000:05d}/{i:012d}.jpg" for i in numbers],
                [(f"a photo of something on a table, the one with the number {i}",) for i in numbers],
            )

    write_parts(folder, parts(), FeatureMeta(encoder="ViT-B/32", dtype="float16"))
