"""What training needs to know of a dual encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from clipcap.models.encoders.clip_preprocess import CLIP_MEAN, CLIP_STD

Part = Literal["head", "image", "text"]
PARTS: tuple[Part, ...] = get_args(Part)


def normalised(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, S, S, 3] → float32 [B, 3, S, S] with the model's mean and deviation."""
    shift, scale = (torch.tensor(values, device=pictures.device).view(3, 1, 1) * 255 for values in (mean, std))
    return (pictures.permute(0, 3, 1, 2).float() - shift) / scale


class Towers(nn.Module, ABC):
    """A dual encoder: what training and files need to know of it.

    Attributes:
        network: the model as its own library builds and stores it, with a `logit_scale`.
        width: D of the embeddings.
        resolution: R; pictures come with their shorter side scaled to it and the middle cut out.
        mean, std: of its pixels.
        max_tokens: longest text; longer ones are cut.
        pad_id: token that fills up shorter ones.
        rates: default learning rates of head, image and text tower.
    """

    network: Any
    width: int
    resolution: int
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    max_tokens: int
    pad_id: int = 0
    rates: tuple[float, float, float]

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → clip_embedding [B, D]."""

    @abstractmethod
    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T] → clip_embedding [B, D]; T may be the longest of the batch."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, its special tokens included, without padding."""

    @abstractmethod
    def part(self, name: str) -> Part:
        """Which part a parameter or a module of the network belongs to."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the files from which `load_encoder` makes the encoder."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Take the weights of such files."""

    def whole(self, pictures: Tensor) -> Tensor:
        """What validation looks at, as the image tower takes it: uint8 [B, R, R, 3] → [B, 3, R, R]."""
        return normalised(pictures, self.mean, self.std)

    @property
    def looks_at(self) -> str:
        """What the image tower takes, in words."""
        return f"{self.resolution} pixels"

    def tower(self, part: Part) -> list[nn.Parameter]:
        """The parameters of a part."""
        return [p for name, p in self.network.named_parameters() if self.part(name) == part]
