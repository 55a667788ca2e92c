"""Noise for the generator, and its pictures as pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CUT = 2.0  # standard deviations; noise beyond is not drawn


def truncated_noise(rows: int, width: int, seed: int, truncation: float = 1.0) -> Tensor:
    """A standard normal cut at ±2, times the truncation: float32 [rows, width].

    Uniform numbers of NumPy's `RandomState(seed)` go through the inverse of the cut distribution, so that the same
    seed produces the same noise as SciPy's `truncnorm.rvs`.
    """
    uniform = torch.from_numpy(np.random.RandomState(seed).uniform(size=(rows, width)))  # float64
    low, high = torch.special.ndtr(torch.tensor([-CUT, CUT], dtype=torch.float64))
    normal = torch.special.ndtri(low + uniform * (high - low))
    return (truncation * normal.float()).float()


def to_pixels(pictures: Tensor) -> np.ndarray:
    """Pictures [B, 3, R, R] in [-1, 1] → uint8 [B, R, R, 3]; values are cut, not rounded, as the original does."""
    scaled = ((pictures.detach().float().cpu() + 1) / 2 * 256).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
