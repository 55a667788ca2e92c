"""OpenAI's image towers as a CPU computes them fastest: the same features up to rounding, with less work.

Of the last block of a vision transformer only the class token is read, so nothing else of it is computed; weights are
packed, and the activation is part of the product before it. A ResNet's batch norms are folded into its convolutions,
whose channels lie together in memory. In bfloat16 the products are, and norms and the sums along the blocks of a
vision transformer stay in float32.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clipcap.models.kernels.packed_linear import PackedLinear, can_pack
from clipcap.models.kernels.switch import fast

QUICK_GELU = 1.702  # OpenAI's activation is x·sigmoid(1.702·x) = swish(1.702·x) / 1.702


def fast_image_tower(visual: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tower of OpenAI's clip package, [B, 3, R, R] → [B, D], to compute features with; the one given is used up.

    Args:
        visual: in evaluation mode, in float32 on a CPU.
        dtype: of its products, float32 or bfloat16.
    """
    if not fast():
        return visual
    if hasattr(visual, "layer1"):
        fold_batch_norms(visual)
        return visual.to(dtype=dtype, memory_format=torch.channels_last)
    return FastVisionTransformer(visual, dtype) if can_pack(dtype) else visual


def fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in place."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (before, convolution), (name, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, name, nn.Identity())


class FastVisionTransformer(nn.Module):
    """OpenAI's vision transformer on a CPU, without gradients.

    Args:
        visual: what it computes; its embeddings and norms are shared, the matrices of its blocks are given up.
        dtype: of its products.
    """

    def __init__(self, visual: Any, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.conv1, self.ln_pre, self.ln_post = visual.conv1, visual.ln_pre, visual.ln_post
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding
        self.proj = visual.proj
        self.patch = visual.conv1.kernel_size[0]
        # A convolution whose windows do not overlap is a product; in float32 it stays what it was, to the last bit.
        whole = dtype == torch.float32
        self.of_patches = None if whole else PackedLinear(visual.conv1.weight.flatten(1), None, dtype=dtype)
        self.blocks = nn.ModuleList()
        while len(visual.transformer.resblocks):  # one by one: of each there is one copy at a time
            self.blocks.append(_Block(visual.transformer.resblocks.pop(0), dtype))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        x = self._embedded(pixels)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, x.shape[1])
        return self.ln_post(last(x, 1)[:, 0]) @ self.proj  # [B, W] -> [B, D]

    def with_tokens(self, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """[B, 3, R, R] → (vectors [B, D], outputs of a layer counted from the end, [B, 1+N, W]).

        The last layer's are behind the last norm; for those of others the last block computes the class token alone.
        """
        x, found = self._embedded(pixels), None
        for number, block in enumerate(self.blocks, -len(self.blocks)):
            x = block(x, x.shape[1] if number < -1 or layer == -1 else 1)
            found = x if number == layer else found
        normed = self.ln_post(x)  # [B, 1+N, W], or [B, 1, W]
        assert found is not None, "the caller has checked the layer"
        return normed[:, 0] @ self.proj, normed if layer == -1 else found

    def _embedded(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → the inputs of the first block, [B, 1+N, W]."""
        patches = self._patches(pixels)  # [B, N, W]
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)  # [B, 1+N, W]
        return self.ln_pre(x + self.positional_embedding)

    def _patches(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → the embeddings of its patches [B, N, W]."""
        if self.of_patches is None:
            return self.conv1(pixels).flatten(2).transpose(1, 2)  # [B, W, R/p, R/p] -> [B, N, W]
        cut = pixels.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # [B, 3, R/p, p, R/p, p]
        return self.of_patches(cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))  # [B, N, 3·p·p] -> [B, N, W]


class _Block(nn.Module):
    """Attention, then a feed-forward net, each behind a norm and beside a residual."""

    def __init__(self, block: Any, dtype: torch.dtype):
        super().__init__()
        attention, feed_forward = block.attn, block.mlp
        self.num_heads = attention.num_heads
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.queries_keys_values = PackedLinear(attention.in_proj_weight, attention.in_proj_bias, dtype=dtype)
        self.project = PackedLinear(attention.out_proj.weight, attention.out_proj.bias, dtype=dtype)
        first, second = feed_forward.c_fc, feed_forward.c_proj
        self.fc1 = PackedLinear(first.weight * QUICK_GELU, first.bias * QUICK_GELU, "swish", dtype)
        self.fc2 = PackedLinear(second.weight / QUICK_GELU, second.bias, dtype=dtype)

    def forward(self, x: Tensor, first: int) -> Tensor:
        """[B, N, W] → the outputs of the `first` positions, [B, first, W]."""
        mixed = self.queries_keys_values(self.ln_1(x)).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, heads, w]
        queries, keys, values = mixed.permute(2, 0, 3, 1, 4)  # 3 × [B, heads, N, w]
        attended = F.scaled_dot_product_attention(queries[:, :, :first], keys, values)
        x = x[:, :first] + self.project(attended.transpose(1, 2).flatten(2))  # [B, heads, first, w] -> [B, first, W]
        return x + self.fc2(self.fc1(self.ln_2(x)))
