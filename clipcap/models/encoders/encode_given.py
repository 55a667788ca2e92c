"""Pixels of images → what captions are conditioned on: vectors, and tokens of a grid, of crops, of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.token_spec import TokenLayout, TokenSpec
from clipcap.models.given import Given, with_tokens

Encode = Callable[[Tensor], tuple[Tensor, ...]]  # pixels [B, 3, R, R] → what is computed of each
Run = Callable[[Encode, Tensor], tuple[Tensor, ...]]  # how a function is applied to many pixels
_PROBE = Image.linear_gradient("L").convert("RGB")  # 256 x 256, encoded to know the sizes


def at_once(encode: Encode, pixels: Tensor) -> tuple[Tensor, ...]:
    """All pixels together."""
    return encode(pixels)


def views_of(picture: Image.Image, spec: TokenSpec | None) -> list[Image.Image]:
    """The pictures that are encoded of a still one: itself, and for crops, row by row, its `number`² parts."""
    if spec is None or spec.kind != "crops":
        return [picture]
    (width, height), n = picture.size, spec.number
    across, down = ([round(side * i / n) for i in range(n + 1)] for side in (max(width, n), max(height, n)))
    if width < n or height < n:
        picture = picture.resize((max(width, n), max(height, n)))
    boxes = [(across[x], down[y], across[x + 1], down[y + 1]) for y in range(n) for x in range(n)]
    return [picture, *(picture.crop(box) for box in boxes)]


def encode_given(
    encoder: Encoder, pixels: Tensor, counts: Sequence[int], spec: TokenSpec | None, run: Run = at_once
) -> Given:
    """What is given of B images.

    Args:
        encoder: of them.
        pixels: [V, 3, R, R], the views of all images one after the other.
        counts: B, how many are of each; 1 but for crops and frames.
        spec: which tokens; None for vectors alone.
        run: how the encoder is applied to many pixels.
    Returns:
        vectors float32 [B, D]: of crops that of the whole, of frames their mean; and tokens [B, N, W].
    """
    if spec is None:
        return Given(*run(lambda part: (encoder.encode_images(part),), pixels))
    if spec.kind == "grid":
        return Given(*run(partial(encoder.encode_tokens, layer=spec.layer, pool=spec.pool), pixels))
    [vectors] = run(lambda part: (encoder.encode_images(part),), pixels)  # [V, D]
    of_images = vectors.split(list(counts))
    if spec.kind == "crops":
        return Given(torch.stack([own[0] for own in of_images]), torch.stack([own[1:] for own in of_images]))
    tokens = [F.pad(own, (0, 0, 0, spec.number - len(own))) for own in of_images]  # [N, D] each
    return with_tokens(torch.stack([own.mean(dim=0) for own in of_images]), torch.stack(tokens))


def layout_of(encoder: Encoder, spec: TokenSpec) -> TokenLayout:
    """Which tokens an encoder gives: one picture is encoded.

    Raises:
        ClipcapError: it has no such layer, or a smaller grid.
    """
    if spec.kind != "grid":
        return TokenLayout.of(spec, spec.views, encoder.dim)
    _, tokens = encoder.encode_tokens(encoder.preprocess(_PROBE)[None], spec.layer, spec.pool)  # [1, N, W]
    side = int(tokens.shape[1] ** 0.5) if not spec.pool else spec.pool
    return TokenLayout.of(spec, tokens.shape[1], tokens.shape[2], tokens.shape[1] - side * side)
