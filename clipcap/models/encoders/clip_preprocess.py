"""CLIP's preprocessing by Pillow and torch: what torchvision's transforms do, without their import of a second."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RIBBON = 32  # images longer than this many times their width are cut


class ClipPreprocess:
    """Shorter side to `resolution` (bicubic), centre crop, scale, normalise; can be sent to worker processes.

    Args:
        resolution: R, in pixels.
    """

    def __init__(self, resolution: int):
        self.resolution = resolution

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image → [3, R, R]."""
        size = self.resolution
        image = crop_extreme_aspect(image)
        shorter = min(image.size)
        width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # uint8 [3, R, R]
        mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))  # [3, 1, 1] each
        return pixels.float().mul_(1 / 255).sub_(mean).div_(std)


def crop_extreme_aspect(image: Image.Image) -> Image.Image:
    """The middle of an image far longer than wide; others as they are.

    Preprocessing keeps the middle alone, but enlarges all of the image before: one of 1 x 100,000 pixels would
    take 15 GB.
    """
    width, height = image.size
    longest = RIBBON * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, width - left, height - top))
