"""What captions are conditioned on: the vector of each image, and whatever else a captioner reads beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Given:
    """What a prefix is made of, for B images.

    Args:
        vectors: [B, D], the pooled embedding of each image.
        tokens: [B, N, W] in any floating-point type, several vectors of each image.
        token_mask: bool [B, N], which of them count; None where all do.
        prompt_ids: int64 [B, H], tokens of text between the image's positions and the caption.
        prompt_mask: bool [B, H], False for the padding before shorter texts.
    """

    vectors: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    prompt_ids: Tensor | None = None
    prompt_mask: Tensor | None = None

    @classmethod
    def of(cls, given: Given | Tensor) -> Given:
        """Vectors [B, D] alone, or what is given already."""
        return given if isinstance(given, Given) else cls(given)

    @classmethod
    def together(cls, parts: Sequence[Given]) -> Given:
        """The images of several, which have all tokens or none."""
        tokens = [part.tokens for part in parts if part.tokens is not None]
        vectors = torch.cat([part.vectors for part in parts])
        return with_tokens(vectors, torch.cat(tokens)) if tokens else cls(vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, images: slice | Tensor | list[int]) -> Given:
        """Of some of the images: by a slice, an index [n] or a mask [B]."""
        return Given(**{name: tensor[images] for name, tensor in self.tensors()})

    def to(self, device: torch.device, non_blocking: bool = False) -> Given:
        """On a device."""
        return Given(**{name: t.to(device, non_blocking=non_blocking) for name, t in self.tensors()})

    def isfinite(self) -> Tensor:
        """Whether all numbers of an image are finite, bool [B]."""
        finite = self.vectors.isfinite().all(dim=1)
        return finite if self.tokens is None else finite & self.tokens.isfinite().all(dim=2).all(dim=1)

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """Those that are there, by name."""
        return ((f.name, value) for f in fields(self) if (value := getattr(self, f.name)) is not None)


def with_tokens(vectors: Tensor, tokens: Tensor) -> Given:
    """Images with vectors [B, D] and stored tokens [B, N, W], of which those of zeros stand for none."""
    there = tokens.any(dim=2)  # [B, N]
    return Given(vectors, tokens, None if there.all() else there)
