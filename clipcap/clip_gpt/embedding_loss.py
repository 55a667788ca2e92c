"""How far predicted embeddings are from those of their images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.clip_gpt.config import EmbeddingLoss


def embedding_loss(
    kind: EmbeddingLoss, predicted: Tensor, embeddings: Tensor, rows: Tensor, temperature: float
) -> Tensor:
    """The loss summed over predicted embeddings.

    Args:
        kind: `mse`, the squared error, a mean over the width (General-GPT's); `cosine`, 1 − cos; `contrastive`, the
            cross-entropy of finding the right one among `embeddings` by cosine (InfoNCE, arXiv 1807.03748). Those are
            the fixed ones of the whole step's images, so that it is the same however a step is split.
        predicted: [O, D].
        embeddings: [C, D].
        rows: [O], which of them each should be.
        temperature: of the cross-entropy.
    Returns:
        a scalar in float32.
    """
    predicted, embeddings = predicted.float(), embeddings.float()
    if kind == "mse":
        return F.mse_loss(predicted, embeddings[rows], reduction="none").mean(dim=1).sum()  # [O, D] -> [O] -> []
    if kind == "cosine":
        return (1 - F.cosine_similarity(predicted, embeddings[rows], dim=1)).sum()
    with torch.autocast(predicted.device.type, enabled=False):
        cosines = F.normalize(predicted, dim=1) @ F.normalize(embeddings, dim=1).T  # [O, C]
    return F.cross_entropy(cosines / temperature, rows, reduction="sum")
