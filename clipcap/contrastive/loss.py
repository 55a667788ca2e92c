"""CLIP's loss (arXiv 2103.00020, figure 3), with negatives from all processes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.contrastive.image_cache import NO_IMAGE
from clipcap.contrastive.towers.base import Part, Towers

MAX_LOGIT_SCALE = math.log(100)  # section 2.5: logits are never scaled by more than 100


def contrastive_loss(images: Tensor, texts: Tensor, keys: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy, summed over this process's rows; negatives are those of all processes.

    Summed over the processes this is the loss of the global batch, and so are its gradients: the gathering passes
    back to each process what the others' rows ask of its embeddings.

    Args:
        images: [B, D], normalised; B is the same for all processes.
        texts: [B, D], normalised, those of the images.
        keys: int64 [B]: rows with equal texts have equal keys, and are not each other's negatives; a row whose key
            is NO_IMAGE counts for nothing.
        logit_scale: the logarithm of the inverse temperature.
    """
    rank, both, all_keys = 0, torch.cat([images, texts], dim=1), keys
    if dist.is_initialized() and dist.get_world_size() > 1:
        rank = dist.get_rank()
        both, all_keys = _Gathered.apply(both), _Gathered.apply(keys)  # [W B, 2 D], [W B]
    all_images, all_texts = both.chunk(2, dim=1)
    own = rank * len(keys) + torch.arange(len(keys), device=keys.device)  # [B], where our rows stand among all
    apart = (all_keys == NO_IMAGE) | (all_keys == keys[:, None])  # [B, W B]
    apart.scatter_(1, own[:, None], False)
    loss = images.new_zeros(len(keys))
    for rows, others in ((images, all_texts), (texts, all_images)):
        logits = (logit_scale.exp() * rows @ others.T).masked_fill(apart, -torch.inf)  # [B, W B]
        loss = loss + F.cross_entropy(logits, own, reduction="none") / 2
    return loss.masked_fill(keys == NO_IMAGE, 0).sum()


class _Gathered(torch.autograd.Function):
    """The rows of all processes, one after the other; backwards, what all processes ask of one's own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        gradient = grad_outputs[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class ContrastiveModel(nn.Module):
    """Pixels and tokens in, loss out: what is trained.

    Args:
        towers: the dual encoder.
        frozen: a tower that stays as it is, running statistics and dropout included.
    """

    def __init__(self, towers: Towers, frozen: Part | None):
        super().__init__()
        self.towers, self.frozen = towers, frozen
        for parameter in towers.tower(frozen) if frozen else ():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> ContrastiveModel:
        """As always, except for the frozen tower."""
        super().train(mode)
        for name, module in self.towers.network.named_modules():
            if name and self.towers.part(name) == self.frozen:
                module.training = False
        return self

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the temperature in its bounds; the parameter itself, since a clamped value has no gradient back."""
        self.towers.network.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor, keys: Tensor) -> Tensor:
        """The loss summed over the rows; pixels [B, 3, R, R], input_ids and attention_mask [B, T], keys [B]."""
        self.clamp()
        images = self.towers.encode_images(pixels)  # [B, D]
        texts = self.towers.encode_texts(input_ids, attention_mask)  # [B, D]
        with torch.autocast(pixels.device.type, enabled=False):  # differences of cosines need their digits
            images, texts = (F.normalize(embedding.float(), dim=1) for embedding in (images, texts))
            return contrastive_loss(images, texts, keys, self.towers.network.logit_scale)
