"""Captions of one image, end to end behind one prefix, each of which sees the prefix and itself alone.

    prefix [P] | caption 1 | caption 2 | …      position ids: 0 … P-1 | P, P+1, … | P, P+1, … | …

The language model reads an image's prefix once instead of once per caption; loss and gradients are the same.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

# By these names configurations limit how far back attention reaches, counted in places of the row.
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


def packing(
    positions: Tensor, prefix_length: int, dtype: torch.dtype, prefix_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """What tells a language model that its rows hold several captions behind one prefix.

    Args:
        positions: [B, T], each token's place in its caption; 0 begins another.
        prefix_length: P.
        dtype: of the language model's inputs.
        prefix_mask: bool [B, P], False for padding within the prefix, which nothing sees.
    Returns:
        attention_mask [B, 1, P+T, P+T], to be added to the scores, and position_ids [B, P+T].
    """
    prefix = torch.arange(prefix_length, device=positions.device).expand(len(positions), -1)  # [B, P]
    begin: int | Tensor = prefix_length  # position of a caption's first token
    if prefix_mask is not None:
        prefix, begin = position_ids(prefix_mask), prefix_mask.sum(dim=1, keepdim=True)  # [B, P], [B, 1]
    caption = F.pad((positions == 0).cumsum(dim=1), (prefix_length, 0))  # [B, P+T]: 0 is the prefix
    own, other = caption[:, :, None], caption[:, None, :]
    seen = ((other == 0) | (other == own)).tril()  # [B, P+T, P+T]
    if prefix_mask is not None:
        seen &= F.pad(prefix_mask, (0, positions.shape[1]), value=True)[:, None]  # [B, 1, P+T]
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return {"attention_mask": mask[:, None], "position_ids": torch.cat([prefix, begin + positions], dim=1)}


def position_ids(mask: Tensor) -> Tensor:
    """Positions of what a mask [B, L] lets be seen, counted from 0; padding has that of what comes before it."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def padded(lm: PreTrainedModel, mask: Tensor, position: Tensor | None = None) -> dict[str, Tensor]:
    """What tells a language model that its rows hold padding in places.

    Args:
        mask: bool [B, L], False for padding.
        position: int64 [B, n], of the tokens that are read (default: of all L).
    Returns:
        attention_mask [B, L], and position_ids where the model takes them.
    """
    inputs = {"attention_mask": mask.long()}
    if "position_ids" in signature(lm.forward).parameters:
        inputs["position_ids"] = position_ids(mask) if position is None else position
    return inputs


@torch.no_grad()
def can_share_prefix(lm: PreTrainedModel) -> bool:
    """Whether a language model obeys `packing`: tried on two short captions, since no attribute tells."""
    if any(getattr(lm.config, name, None) for name in WINDOWS):
        return False
    embed = cast(nn.Embedding, lm.get_input_embeddings())
    weight = embed.weight
    ids = torch.randint(len(weight), (1, 7), generator=torch.Generator().manual_seed(0))
    embeds = embed(ids.to(weight.device))  # [1, 7, E]: a prefix of 2, captions of 3 and 2
    prefix, captions = embeds[:, :2], embeds[:, 2:].split([3, 2], dim=1)
    positions = torch.tensor([[0, 1, 2, 0, 1]], device=weight.device)
    training = lm.training
    lm.eval()
    try:
        together = _hidden(lm, embeds, **packing(positions, 2, embeds.dtype))
        apart = torch.cat([_hidden(lm, torch.cat([prefix, caption], dim=1)) for caption in captions], dim=1)
    except Exception:  # whatever a model says to arguments that it does not know
        return False
    finally:
        lm.train(training)
    return bool((together - apart).abs().max() < 1e-3 * apart.std())


def _hidden(lm: PreTrainedModel, inputs_embeds: Tensor, **packed: Tensor) -> Tensor:
    """Last hidden states behind a prefix of 2: [1, 2+T, E] → [1, T, H]."""
    return lm.base_model(inputs_embeds=inputs_embeds, use_cache=False, **packed).last_hidden_state[:, 2:]
