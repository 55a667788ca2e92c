"""CLIP embedding → prefix of language-model embeddings (ClipCap, section 3.3).

Parameter names are those of the original implementation, so that its state dicts map one to one.
"""

from __future__ import annotations

import math
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

    def forward(self, x: Tensor, first: int = 0, seen: Tensor | None = None) -> Tensor:
        """[B, C+P, E] → what the positions from `first` on gather: [B, N, E].

        Of all positions, or of those that `seen`, bool [B, C+P], has true.
        """
        queries = self.to_queries(x[:, first:]).unflatten(2, (self.num_heads, -1))  # [B, N, heads, E/heads]
        keys_values = self.to_keys_values(x).unflatten(2, (2, self.num_heads, -1))  # [B, C+P, 2, heads, E/heads]
        keys, values = keys_values.permute(2, 0, 3, 1, 4)  # 2 × [B, heads, C+P, E/heads]
        mask = None if seen is None else seen[:, None, None]  # [B, 1, 1, C+P]
        attended = attend(queries.transpose(1, 2), keys, values, mask)  # scaled by (E/heads)^-0.5
        return self.project(attended.transpose(1, 2).flatten(2))  # [B, heads, N, E/heads] -> [B, N, E]


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a ReLU feed-forward net of twice the width."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int = 2):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, dim * mlp_ratio), "fc2": nn.Linear(dim * mlp_ratio, dim)})

    def forward(self, x: Tensor, first: int = 0, seen: Tensor | None = None) -> Tensor:
        """[B, C+P, E] → the outputs of the positions from `first` on, [B, N, E]; `seen` as of the attention."""
        x = x[:, first:] + self.attn(self.norm1(x), first, seen)
        return x + self.mlp["fc2"](F.relu(self.mlp["fc1"](self.norm2(x))))


class Transformer(nn.Module):
    """A stack of blocks, no final norm, no positional encoding."""

    def __init__(self, dim: int, num_heads: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))

    def forward(self, x: Tensor, first: int, seen: Tensor | None = None) -> Tensor:
        """[B, C+P, E] → the outputs from position `first` on, [B, N, E]; the last block computes no more."""
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, 0, seen)
        return last(x, first, seen)

    def output_parameters(self) -> list[nn.Parameter]:
        """Of what each block adds to its inputs."""
        layers: Any = self.layers  # of blocks, which its type does not say
        added = [part for layer in layers for part in (layer.attn.project, layer.mlp["fc2"])]
        return [parameter for part in added for parameter in part.parameters()]


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
        _check_heads(embed_dim, num_heads)
        self.prefix_length_clip = prefix_length_clip
        self.linear = nn.Linear(clip_dim, prefix_length_clip * embed_dim)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, embed_dim))
        self.transformer = Transformer(embed_dim, num_heads, num_layers)

    def forward(self, clip_embedding: Tensor) -> Tensor:
        """[B, D] → prefix [B, P, E]."""
        clip_tokens = self.linear(clip_embedding).unflatten(1, (self.prefix_length_clip, -1))  # [B, C, E]
        constants = self.prefix_const.expand(clip_tokens.shape[0], -1, -1)  # [P, E] -> [B, P, E]
        mixed = torch.cat([clip_tokens, constants], dim=1)  # [B, C+P, E]
        return self.transformer(mixed, self.prefix_length_clip)  # [B, P, E]

    def output_parameters(self) -> list[nn.Parameter]:
        """What the outputs grow in proportion to, nearly: the constants, and what each block adds to them."""
        return [self.prefix_const, *self.transformer.output_parameters()]


class TokenMapper(nn.Module):
    """The tokens of an image and its vector beside P learnt constants, through a transformer; the constants' outputs
    are the prefix, which is thus as long as without tokens.

    Args:
        clip_dim: D, width of the vector.
        tokens: N of an image.
        width: W of a token.
        embed_dim: E, width of the language model's input embeddings; a multiple of `num_heads`.
        prefix_length: P, positions given to the image.
        num_layers: transformer blocks.
        num_heads: attention heads.

    Raises:
        ClipcapError: E is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        clip_dim: int,
        tokens: int,
        width: int,
        embed_dim: int,
        prefix_length: int,
        num_layers: int = 8,
        num_heads: int = 8,
    ):
        super().__init__()
        _check_heads(embed_dim, num_heads)
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, embed_dim)
        self.vector_norm, self.vector_linear = nn.LayerNorm(clip_dim), nn.Linear(clip_dim, embed_dim)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, embed_dim))
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, embed_dim))
        self.transformer = Transformer(embed_dim, num_heads, num_layers)

    def forward(self, vectors: Tensor, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Vectors [B, D] and tokens [B, N, W], of which bool [B, N] says which count → prefix [B, P, E]."""
        of_tokens = self.linear(self.norm(tokens)) + self.positions  # [B, N, W] -> [B, N, E]
        of_vector = self.vector_linear(self.vector_norm(vectors))[:, None]  # [B, D] -> [B, 1, E]
        constants = self.prefix_const.expand(vectors.shape[0], -1, -1)  # [P, E] -> [B, P, E]
        mixed = torch.cat([of_tokens, of_vector, constants], dim=1)  # [B, N+1+P, E]
        seen = None if token_mask is None else F.pad(token_mask, (0, 1 + constants.shape[1]), value=True)
        return self.transformer(mixed, tokens.shape[1] + 1, seen)  # [B, P, E]

    def output_parameters(self) -> list[nn.Parameter]:
        """What the outputs grow in proportion to, nearly."""
        return [self.prefix_const, *self.transformer.output_parameters()]


class ProjectMapper(nn.Module):
    """Each token, or each square of neighbours in the grid, becomes a position of the prefix: the plain way of LLaVA
    and nanoVLM (space-to-depth, then one linear layer or an MLP).

    Args:
        tokens: N of an image.
        width: W of a token.
        extra: class and register tokens among them, which stand first; squares leave them out.
        embed_dim: E, width of the language model's input embeddings.
        side: r of the squares: P = N for 1, else (N − extra) / r².
        hidden: width of the MLP's hidden layer; None for one linear layer.

    Raises:
        ClipcapError: the grid is no square, or `side` does not divide its side.
    """

    def __init__(self, tokens: int, width: int, extra: int, embed_dim: int, side: int = 1, hidden: int | None = None):
        super().__init__()
        self.extra, self.side = extra, side
        self.grid = math.isqrt(max(0, tokens - extra))
        if side > 1 and (self.grid**2 != tokens - extra or self.grid % side):
            raise ClipcapError(
                f"--space_to_depth {side}: the grid of {tokens - extra} tokens has no side that it divides: parse "
                f"the images with --pool, or choose another"
            )
        inputs = width * side**2
        # distilvit2 has a dropout in the place of the identity, and names of tensors follow the places.
        self.projection = (
            nn.Linear(inputs, embed_dim)
            if hidden is None
            else nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, embed_dim))
        )

    def forward(self, vectors: Tensor, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Tokens [B, N, W] → prefix [B, P, E]; vectors are not read, and tokens that do not count are zeros."""
        return self.projection(tokens if self.side == 1 else self._squares(tokens))

    def _squares(self, tokens: Tensor) -> Tensor:
        """Space to depth: [B, N, W] → [B, P, r²·W]."""
        parts = self.grid // self.side
        grid = tokens[:, self.extra :].unflatten(1, (parts, self.side, parts, self.side))  # [B, h/r, r, w/r, r, W]
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)

    def output_parameters(self) -> list[nn.Parameter]:
        """What the outputs grow in proportion to."""
        last = self.projection[-1] if isinstance(self.projection, nn.Sequential) else self.projection
        return list(last.parameters())


def _check_heads(embed_dim: int, num_heads: int) -> None:
    if embed_dim % num_heads:
        raise ClipcapError(
            f"the language model is {embed_dim} wide, which {num_heads} attention heads do not divide: "
            f"choose another --num_heads"
        )


Mapper = MLP | TransformerMapper | TokenMapper | ProjectMapper


def positions_of_tokens(config: ModelConfig) -> int:
    """P, the positions that the mapper `project` makes of the tokens."""
    side = config.space_to_depth
    return config.token_count if side == 1 else (config.token_count - config.token_extra) // side**2


def make_mapper(config: ModelConfig, embed_dim: int) -> Mapper:
    """The mapper of a configuration, before a language model whose embeddings are `embed_dim` wide."""
    if config.mapping_type == "project":
        hidden = config.projection_hidden if config.projection == "mlp" else None
        sizes = (config.token_count, config.token_width, config.token_extra, embed_dim)
        return ProjectMapper(*sizes, config.space_to_depth, hidden)
    if config.tokens is not None:
        sizes = (config.clip_dim, config.token_count, config.token_width, embed_dim)
        return TokenMapper(*sizes, config.prefix_length, config.num_layers, config.num_heads)
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
