"""Attention written out as products, where torch's fused operation is slower: training in bfloat16 on a CPU.

Its backward pass there takes half of a training step. Scores of short sequences fit into the cache, and products of
batches of small matrices are far faster; long sequences go to the fused operation, which holds no scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.models.kernels.switch import fast

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

LONGEST = 256  # positions; the scores of longer sequences would take more memory than all else of a layer
NAME = "clipcap_short"  # by which language models of transformers know it


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, heads, N, w], [B, heads, M, w] twice → softmax(queries·keysᵀ / √w)·values, [B, heads, N, w].

    Of all M keys, or of those where `mask`, bool [B, 1, 1, M], is true.
    """
    if mask is not None or not _written_out(queries, keys):
        return F.scaled_dot_product_attention(queries, keys, values, mask)
    return _product(queries, keys, values, None, queries.shape[-1] ** -0.5)


def write_out_attention(lm: PreTrainedModel) -> None:
    """Let a language model's attention be written out where that is faster, in place; others stay as they are."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if lm.config._attn_implementation != "sdpa":
        return
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention_of_lm)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    lm.set_attn_implementation(NAME)


def _attention_of_lm(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [B, heads, N, w] and masks [B, 1, N, M] → [B, N, heads, w]."""
    kwargs |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
    if not _written_out(query, key) or kwargs.get("position_bias") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # pyright: ignore
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:
        attention_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _product(query, key, value, attention_mask, scale, dropout).transpose(1, 2), None


def _written_out(queries: Tensor, keys: Tensor) -> bool:
    """Whether these are short sequences in bfloat16 on a CPU, with gradients."""
    small = queries.dtype == torch.bfloat16 and queries.device.type == "cpu" and torch.is_grad_enabled()
    return small and max(queries.shape[2], keys.shape[2]) <= LONGEST and fast()


def _product(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0
) -> Tensor:
    scores = (queries @ keys.transpose(2, 3)).float() * scale  # [B, heads, N, M]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return F.dropout(scores.softmax(dim=-1), dropout).to(values.dtype) @ values
