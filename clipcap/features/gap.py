"""The gap between an encoder's images and its texts, and the noise that bridges it in text-only training.

Images and texts of a CLIP lie in two cones (arXiv 2203.02053). A text with Gaussian noise of deviation σ in each of D
dimensions has the cosine 1 / √(1 + σ²D) with itself: σ is chosen so that this is the mean cosine c of an image and
its caption, σ = √((c⁻² − 1) / D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.models.encoders.load import load_encoder

PAIRS = 2000  # looked at, spread over the file
BATCH = 256  # texts encoded at a time
USUAL_COSINE = 0.3  # of CLIP's own images and captions (arXiv 2104.08718: CLIPScore 0.75 to 0.78, over 2.5)


@dataclass(frozen=True)
class Gap:
    """What lies between images and their captions.

    Attributes:
        pairs: looked at.
        distance: between the mean image and the mean text, of unit vectors.
        paired, shuffled: mean cosine of an image and its caption, and of an image and another one's.
        shifted: mean paired cosine, once the texts are moved by the difference of the means.
        width: D.
    """

    pairs: int
    distance: float
    paired: float
    shuffled: float
    shifted: float
    width: int

    def noise(self, shift: bool) -> float:
        """σ per dimension, of texts that are moved by the difference of the means or not."""
        return noise_of(self.shifted if shift else self.paired, self.width)


def noise_of(cosine: float, width: int) -> float:
    """The deviation per dimension that leaves a unit vector of this width this mean cosine with itself.

    Raises:
        ClipcapError: the cosine is not above 0: images and texts do not belong together.
    """
    if not cosine > 0:
        raise ClipcapError(
            f"images and their captions have a mean cosine of {cosine:.3f}: this encoder's texts do not lie near its "
            f"images, and cannot stand in for them"
        )
    return math.sqrt(max(cosine**-2 - 1, 0) / width)


def measure(images: Tensor, texts: Tensor) -> Gap:
    """The gap of N images and a caption of each, both [N, D] and of any length."""
    if len(images) < 2:
        raise ClipcapError("the gap between images and texts needs at least two captioned images")
    images, texts = F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)
    shift = images.mean(dim=0) - texts.mean(dim=0)  # [D]
    moved = F.normalize(texts + shift, dim=1)
    count = len(images)
    paired = (images * texts).sum(dim=1).mean().item()
    all_pairs = float(images.sum(dim=0) @ texts.sum(dim=0))
    return Gap(
        pairs=count,
        distance=shift.norm().item(),
        paired=paired,
        shuffled=(all_pairs - paired * count) / (count * (count - 1)),
        shifted=(images * moved).sum(dim=1).mean().item(),
        width=images.shape[1],
    )


def measure_features(features: Features, most: int = PAIRS) -> Gap:
    """The gap of captioned images, of which `most` are looked at; their captions are encoded here.

    Raises:
        ClipcapError: no captions, or the encoder is not known or is not to be had.
    """
    name = features.meta.encoder
    if name is None:
        raise ClipcapError(f"{features.path}: does not say its encoder: name it with --clip_model_type")
    rows, first = np.unique(features.caption_rows, return_index=True)
    if len(rows) < 2:
        raise ClipcapError(f"{features.path}: the gap between images and texts needs two captioned images or more")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))
    encoder = load_encoder(name)
    captions = [features.captions[int(number)] for number in first[chosen]]
    texts = [encoder.encode_texts(captions[i : i + BATCH]).cpu() for i in range(0, len(captions), BATCH)]
    return measure(features.rows(rows[chosen]), torch.cat(texts))


def describe_gap(path: str | Path, encoder: str | None = None) -> str:
    """`clipcap features gap`: how far images and their captions lie apart, in lines."""
    gap = measure_features(read_features(path, encoder))
    lines = {
        "pairs": f"{gap.pairs:,}, {gap.width} wide",
        "means": f"{gap.distance:.4f} apart (of unit vectors)",
        "paired": f"mean cosine {gap.paired:.4f}",
        "shuffled": f"mean cosine {gap.shuffled:.4f}",
        "noise": f"{gap.noise(False):.4f} per dimension (--noise auto)",
        "shifted": f"paired mean cosine {gap.shifted:.4f}, noise {gap.noise(True):.4f} (with --photos)",
    }
    return "\n".join([str(path), *(f"  {name + ':':12}{value}" for name, value in lines.items())])
