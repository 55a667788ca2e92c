"""Which tokens of an image are read beside its vector: places of a grid, crops, or frames."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError

Kind = Literal["grid", "crops", "frames", "import"]
MOST_VIEWS = 64  # crops or frames of an image


@dataclass(frozen=True)
class TokenSpec:
    """How the tokens of an image are made.

    Args:
        kind: `grid`: places of a layer of the encoder; `crops`: the vectors of `number` × `number` crops; `frames`:
            those of `number` frames of an animation; `import`: made elsewhere.
        number: crops a side, or frames; 0 for the other kinds.
        layer: of a grid, counted from the end: -1 is the last, behind the encoder's own last norm.
        pool: a grid is averaged to `pool` × `pool` places; 0 leaves it as it is.
    """

    kind: Kind
    number: int = 0
    layer: int = -1
    pool: int = 0

    @classmethod
    def parse(cls, text: str, layer: int = -1, pool: int = 0) -> TokenSpec:
        """Of `grid`, `crops:N` or `frames:N`, as `--tokens` takes it.

        Raises:
            ClipcapError: another text, a number out of range, or --layer or --pool with anything but a grid.
        """
        kind, _, number = text.partition(":")
        if kind == "grid" and not number:
            if layer >= 0 or pool < 0:
                raise ClipcapError(
                    f"--layer counts from the end (-1 is the last), --pool is a side of the grid: got {layer}, {pool}"
                )
            return cls("grid", 0, layer, pool)
        largest = math.isqrt(MOST_VIEWS) if kind == "crops" else MOST_VIEWS
        if kind not in ("crops", "frames") or not number.isdecimal() or not 2 <= int(number) <= largest:
            raise ClipcapError(
                f"--tokens {text}: is grid, crops:N with N from 2 to {math.isqrt(MOST_VIEWS)}, or frames:N with N "
                f"from 2 to {MOST_VIEWS}"
            )
        if layer != -1 or pool:
            raise ClipcapError(f"--layer and --pool are of --tokens grid: leave them out with {text}")
        return cls("crops" if kind == "crops" else "frames", int(number))

    @property
    def name(self) -> str:
        """As `--tokens` takes it."""
        return f"{self.kind}:{self.number}" if self.number else self.kind

    @property
    def views(self) -> int:
        """Pictures of an image whose vectors are its tokens; 0 for a grid."""
        return {"crops": self.number**2, "frames": self.number}.get(self.kind, 0)

    def flags(self) -> str:
        """The flags of `clipcap parse` that ask for it."""
        layer = f" --layer {self.layer}" if self.layer != -1 else ""
        return f"--tokens {self.name}{layer}" + (f" --pool {self.pool}" if self.pool else "")


@dataclass(frozen=True)
class TokenLayout(TokenSpec):
    """The tokens of a feature folder, or those that a captioner reads.

    Args:
        count: N, tokens of an image.
        width: W.
        extra: how many of them are class and register tokens, before those of the grid.
    """

    count: int = 0
    width: int = 0
    extra: int = 0

    @classmethod
    def of(cls, spec: TokenSpec, count: int, width: int, extra: int = 0) -> TokenLayout:
        """Tokens made as `spec` says, [N, W] an image."""
        return cls(spec.kind, spec.number, spec.layer, spec.pool, count, width, extra)

    @classmethod
    def from_file(cls, content: Any) -> TokenLayout:
        """What `asdict` made of one.

        Raises:
            ValueError: it is none.
        """
        kinds = {f.name: str if f.name == "kind" else int for f in fields(cls)}
        if not isinstance(content, dict) or any(type(content.get(n)) is not kind for n, kind in kinds.items()):
            raise ValueError("no description of tokens")
        found = cls(**{name: content[name] for name in kinds})
        if found.kind not in get_args(Kind) or not found.count > 0 or not found.width > 0:
            raise ValueError(f"no description of tokens: {found}")
        return found

    def __str__(self) -> str:
        made = "imported" if self.kind == "import" else self.flags()
        return f"{self.count} x {self.width} ({made})"


class ImageMap(NamedTuple):
    """What an encoder computes of B images in one pass."""

    vector: Tensor  # [B, D]
    extra: Tensor | None  # [B, K, W], class and register tokens
    places: Tensor  # [B, W, h, w]

    def tokens(self, pool: int = 0) -> Tensor:
        """The extra tokens, then the places row by row, averaged to `pool` × `pool` of them: [B, K + h·w, W].

        Raises:
            ClipcapError: `pool` is larger than the grid.
        """
        places = self.places
        if pool:
            if pool > min(places.shape[2:]):
                size = " x ".join(map(str, places.shape[2:]))
                raise ClipcapError(f"--pool {pool}: the encoder's grid is {size}: choose a smaller one, or none")
            places = F.adaptive_avg_pool2d(places, pool)
        of_places = places.flatten(2).transpose(1, 2)  # [B, W, h, w] -> [B, h·w, W]
        return of_places if self.extra is None else torch.cat([self.extra, of_places], dim=1)


def image_map(vector: Tensor, sequence: Tensor, grid: tuple[int, int] | None = None) -> ImageMap:
    """The map of a transformer's outputs: what is before the places of its grid is extra.

    Args:
        vector: [B, D].
        sequence: [B, K + h·w, W].
        grid: (h, w), where it is known; else the largest square that fits.
    """
    count = sequence.shape[1]
    side = math.isqrt(count)
    height, width = grid if grid and grid[0] * grid[1] <= count else (side, side)
    extra = count - height * width
    places = sequence[:, extra:].transpose(1, 2).unflatten(2, (height, width))  # [B, W, h, w]
    return ImageMap(vector, sequence[:, :extra] if extra else None, places)
