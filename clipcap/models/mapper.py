"""CLIP embedding → prefix of language-model embeddings (ClipCap, section 3.3).

Parameter names are those of the original implementation, so that its state dicts map one to one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.models.config import ModelConfig
from clipcap.models.kernels.attention import attend


class MLP(nn.Module):
    """Linear – tanh – linear, of sizes (D, E·P/2, E·P).

    Args:
        clip_dim: D, width of the CLIP embedding.
        embed_dim: E, width of the language model's input embeddings.
        prefix_length: P, positions given to the image.
    """

    def __init__(self, clip_dim: int, embed_dim: int, prefix_length: int):
        super().__init__()
        self.prefix_length = prefix_length
        hidden = embed_dim * prefix_length // 2
        self.model = nn.Sequential(
            nn.Linear(clip_dim, hidden), nn.Tanh(), nn.Linear(hidden, embed_dim * prefix_length)
        )

    def forward(self, clip_embedding: Tensor) -> Tensor:
        """[B, D] → prefix [B, P, E]."""
        return self.model(clip_embedding).unflatten(1, (self.prefix_length, -1))  # [B, P·E] -> [B, P, E]

    def output_parameters(self) -> list[nn.Parameter]:
        """What the outputs grow in proportion to."""
        return list(self.model[-1].parameters())


class Attention(nn.Module):
    """Multi-head self-attention without mask; queries, keys and values have no bias."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """[B, C+P, E] → what the positions from `first` on gather: [B, N, E]."""
        queries = self.to_queries(x[:, first:]).unflatten(2, (self.num_heads, -1))  # [B, N, heads, E/heads]
        keys_values = self.to_keys_values(x).unflatten(2, (2, self.num_heads, -1))  # [B, C+P, 2, heads, E/heads]
        keys, values = keys_values.permute(2, 0, 3, 1, 4)  # 2 × [B, heads, C+P, E/heads]
        attended = attend(queries.transpose(1, 2), keys, values)  # scaled by (E/heads)^-0.5
        return self.project(attended.transpose(1, 2).flatten(2))  # [B, heads, N, E/heads] -> [B, N, E]


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a ReLU feed-forward net of twice the width."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int = 2):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, dim * mlp_ratio), "fc2": nn.Linear(dim * mlp_ratio, dim)})

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """[B, C+P, E] → the outputs of the positions from `first` on, [B, N, E]."""
        x = x[:, first:] + self.attn(self.norm1(x), first)
        return x + self.mlp["fc2"](F.relu(self.mlp["fc1"](self.norm2(x))))


class Transformer(nn.Module):
    """A stack of blocks, no final norm, no positional encoding."""

    def __init__(self, dim: int, num_heads: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))

    def forward(self, x: Tensor, first: int) -> Tensor:
        """[B, C+P, E] → the outputs from position `first` on, [B, N, E]; the last block computes no more."""
        *blocks, last = self.layers
        for block in blocks:
            x = block(x)
        return last(x, first)


class TransformerMapper(nn.Module):
    """The embedding as C tokens beside P learnt constants, through a transformer; the constants' outputs
    are the prefix.

    Args:
        clip_dim: D, width of the CLIP embedding.
        embed_dim: E, width of the language model's input embeddings; a multiple of `num_heads`.
        prefix_length: P, positions given to the image.
        prefix_length_clip: C, tokens the embedding is split into.
        num_layers: transformer blocks.
        num_heads: attention heads.

    Raises:
        ClipcapError: E is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        clip_dim: int,
        embed_dim: int,
        prefix_length: int,
        prefix_length_clip: int,
        num_layers: int = 8,
        num_heads: int = 8,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ClipcapError(
                f"the language model is {embed_dim} wide, which {num_heads} attention heads do not divide: "
                f"choose another --num_heads"
            )
        self.prefix_length_clip = prefix_length_clip
        self.linear = nn.Linear(clip_dim, prefix_length_clip * embed_dim)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, embed_dim))
        self.transformer = Transformer(embed_dim, num_heads, num_layers)

    def forward(self, clip_embedding: Tensor) -> Tensor:
        """[B, D] → prefix [B, P, E]."""
        clip_tokens = self.linear(clip_embedding).unflatten(1, (self.prefix_length_clip, -1))  # [B, C, E]
        constants = self.prefix_const.expand(len(clip_tokens), -1, -1)  # [P, E] -> [B, P, E]
        mixed = torch.cat([clip_tokens, constants], dim=1)  # [B, C+P, E]
        return self.transformer(mixed, self.prefix_length_clip)  # [B, P, E]

    def output_parameters(self) -> list[nn.Parameter]:
        """What the outputs grow in proportion to, nearly: the constants, and what each block adds to them."""
        layers: Any = self.transformer.layers  # of blocks, which its type does not say
        added = [part for layer in layers for part in (layer.attn.project, layer.mlp["fc2"])]
        return [self.prefix_const, *(parameter for part in added for parameter in part.parameters())]


def make_mapper(config: ModelConfig, embed_dim: int) -> MLP | TransformerMapper:
    """The mapper of a configuration, before a language model whose embeddings are `embed_dim` wide."""
    if config.mapping_type == "mlp":
        return MLP(config.clip_dim, embed_dim, config.prefix_length)
    return TransformerMapper(
        config.clip_dim,
        embed_dim,
        config.prefix_length,
        config.prefix_length_clip,
        config.num_layers,
        config.num_heads,
    )
