"""Finding pictures by words: exact search over features, and how often a search finds what belongs together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.features import Features

BLOCK = 8192  # rows in memory at a time
QUERIES = 1024  # ranked at a time


def search(features: Features, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest images of each query, by the cosine of their embeddings.

    Exact: every row is compared, a block at a time, so that features on disk may be larger than memory. Equal scores
    stand in row order; several rows of one image count as one, the best.

    Args:
        queries: [Q, D], of any norm.
        k: matches per query, fewer where there are fewer images.
    Returns:
        rows int64 [Q, K] and their cosines float32 [Q, K], best first.
    """
    if queries.shape[1] != features.dim:
        raise ClipcapError(
            f"{features.path}: embeddings are {features.dim} wide, the queries' {queries.shape[1]}: "
            "search with the encoder of the features"
        )
    queries = F.normalize(queries.float(), dim=1)
    images = torch.from_numpy(features.row_images)  # [N]
    rows = torch.empty(len(queries), 0, dtype=torch.int64)
    scores = torch.empty(len(queries), 0)
    for start in range(0, features.num_images, BLOCK):
        block = F.normalize(features.rows(slice(start, start + BLOCK)), dim=1)  # [B, D]
        found = (queries @ block.T).nan_to_num(nan=-torch.inf)  # [Q, B]
        scores = torch.cat([scores, found], dim=1)
        rows = torch.cat([rows, start + torch.arange(len(block)).expand(len(queries), -1)], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        rows = rows.gather(1, order)
        best = _first_of_each(images[rows], k)  # [Q, K]
        rows, scores = rows.gather(1, best), scores.gather(1, best)
    return rows, scores


def _first_of_each(images: Tensor, k: int) -> Tensor:
    """Where each query's first k different images stand: [Q, B] → [Q, K]."""
    firsts = [np.sort(np.unique(row, return_index=True)[1])[:k] for row in images.numpy()]
    return torch.from_numpy(np.stack(firsts))


@torch.no_grad()
def recall(image_embeddings: Tensor, text_embeddings: Tensor, text_images: Sequence[int]) -> dict[str, float]:
    """How often image → text and text → image search find a match among the first 1, 5 and 10; and its median rank.

    An image is found by any of its texts. Equal scores stand in row order, as in `search`: a model that gives the
    same embedding to everything scores like chance.

    Args:
        image_embeddings: [N, D], of any norm.
        text_embeddings: [M, D], of any norm.
        text_images: [M], the image each text belongs to; images without a text are not asked for.
    Returns:
        `i2t_r1`, `i2t_r5`, `i2t_r10` as shares, `i2t_median` counted from 1, and the same for `t2i`.
    """
    images, texts = F.normalize(image_embeddings.float(), dim=1), F.normalize(text_embeddings.float(), dim=1)
    owner = torch.as_tensor(text_images, device=images.device)
    every = torch.arange(len(images), device=images.device)
    to_text = [_ranks(images[part] @ texts.T, part[:, None] == owner) for part in owner.unique().split(QUERIES)]
    by_text = zip(texts.split(QUERIES), owner.split(QUERIES), strict=True)
    to_image = [_ranks(part @ images.T, own[:, None] == every) for part, own in by_text]
    return _shares("i2t", torch.cat(to_text)) | _shares("t2i", torch.cat(to_image))


def _ranks(scores: Tensor, own: Tensor) -> Tensor:
    """How many others come before the best of one's own, [Q]; scores and own are [Q, C]."""
    best, place = scores.masked_fill(~own, -torch.inf).max(dim=1, keepdim=True)
    earlier = torch.arange(scores.shape[1], device=scores.device) < place
    return (~own & ((scores > best) | (scores == best) & earlier)).sum(dim=1)


def _shares(name: str, ranks: Tensor) -> dict[str, float]:
    found = {f"{name}_r{k}": (ranks < k).double().mean().item() for k in (1, 5, 10)}
    return {**found, f"{name}_median": float(np.median(ranks.cpu().numpy())) + 1}
