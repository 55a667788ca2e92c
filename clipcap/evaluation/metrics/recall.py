"""How often images and texts find each other: recall at 1, 5 and 10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.retrieval.exact import QUERIES


@torch.no_grad()
def recall(
    image_embeddings: Tensor, text_embeddings: Tensor, text_images: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """How often image → text and text → image search find a match among the first 1, 5 and 10; and its median rank.

    An image is found by any of its texts. Equal scores are ranked in row order, as in `search`: a model that
    gives the same embedding to everything scores like chance.

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


@torch.no_grad()
def own_ranks(images: Tensor, captions: Tensor) -> np.ndarray:
    """The rank of its own image among all images, for one caption of each: self-retrieval (arXiv 1803.08314).

    Args:
        images: [N, D], of any norm.
        captions: [N, D], from the same encoder.
    Returns:
        float64 [N], 1 for a caption nearer to its own image than to any other. Equal scores are ranked in row order.
    """
    images, captions = F.normalize(images.float(), dim=1), F.normalize(captions.float(), dim=1)
    every = torch.arange(len(images), device=images.device)
    parts = zip(captions.split(QUERIES), every.split(QUERIES), strict=True)
    ranks = [_ranks(part @ images.T, own[:, None] == every) for part, own in parts]
    return torch.cat(ranks).double().cpu().numpy() + 1


def _ranks(scores: Tensor, own: Tensor) -> Tensor:
    """How many others come before the best of one's own, [Q]; scores and own are [Q, C]."""
    best, place = scores.masked_fill(~own, -torch.inf).max(dim=1, keepdim=True)
    earlier = torch.arange(scores.shape[1], device=scores.device) < place
    return (~own & ((scores > best) | (scores == best) & earlier)).sum(dim=1)


def _shares(name: str, ranks: Tensor) -> dict[str, float]:
    found = {f"{name}_r{k}": (ranks < k).double().mean().item() for k in (1, 5, 10)}
    return {**found, f"{name}_median": float(np.median(ranks.cpu().numpy())) + 1}
