"""CLIPScore and RefCLIPScore (arXiv 2104.08718), and PAC-S and RefPAC-S (arXiv 2303.12112), on embeddings.

PAC-S is CLIPScore by a CLIP fine-tuned to judge captions, with another weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PROMPT = "A photo depicts "  # before each caption and reference
WEIGHT, PAC_WEIGHT = 2.5, 2.0


def clip_score(images: Tensor, captions: Tensor, weight: float = WEIGHT) -> Tensor:
    """CLIPScore of each image: weight · max(cos, 0).

    Args:
        images: CLIP embeddings [N, D], any length and dtype.
        captions: embeddings of `PROMPT` + caption, [N, D], from the same encoder.
        weight: 2.5 for CLIPScore, 2 for PAC-S.
    Returns:
        float32 [N], 0 to `weight`; the corpus score is the mean.
    """
    cosines = F.cosine_similarity(images.float(), captions.float(), dim=-1)  # [N, D], [N, D] -> [N]
    return weight * cosines.clamp(min=0)


def ref_clip_score(images: Tensor, captions: Tensor, references: Sequence[Tensor], weight: float = WEIGHT) -> Tensor:
    """RefCLIPScore: harmonic mean of CLIPScore and of the cosine to the nearest reference, at least 0.

    Args:
        images: as for `clip_score`.
        captions: as for `clip_score`.
        references: of each image the embeddings [R, D] of `PROMPT` + reference.
        weight: as for `clip_score`.
    Returns:
        float32 [N]; 0 where either part is 0.
    """
    nearest = [F.cosine_similarity(c[None], r.float(), dim=-1).max() for c, r in zip(captions.float(), references)]
    to_references = torch.stack(nearest).clamp(min=0)  # [N]
    to_image = clip_score(images, captions, weight)  # [N]
    total = to_image + to_references
    return torch.where(total > 0, 2 * to_image * to_references / total.clamp(min=1e-12), 0.0)
