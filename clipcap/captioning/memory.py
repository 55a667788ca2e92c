"""A memory of texts: an image's embedding becomes a mixture of those of texts (DeCap, arXiv 2303.03032)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.models.config import ModelConfig, PrefixConfig

LARGEST = 500_000  # texts, as in the paper: more are thinned out evenly
ROWS = 256  # images projected at a time


class TextMemory:
    """Texts that images are projected on.

    Args:
        texts: embeddings [M, D], of any length.
        logit_scale: what cosines are multiplied by before the softmax: the encoder's own.
    """

    def __init__(self, texts: Tensor, logit_scale: float):
        self.texts, self.logit_scale = F.normalize(texts.float(), dim=1), logit_scale

    @classmethod
    def open(cls, path: str | Path, config: PrefixConfig, logit_scale: float) -> TextMemory:
        """The texts of a folder that `clipcap parse texts` made.

        Args:
            config: of the captioner, whose encoder must have made the texts.
        Raises:
            ClipcapError: no texts there, or those of another encoder; a captioner that learnt from photos, or from
                texts moved to the mean of photos, where a memory of texts would lead away from them.
        """
        from clipcap.features.files import read_features

        features = read_features(path, tower="text")
        check_same_encoder(
            features.meta, features.dim, config.encoder, config.encoder_weights_id, config.clip_dim, path,
            "the checkpoint",
        )  # fmt: skip
        if not config.normalize_prefix:
            raise ClipcapError(
                f"--memory {path}: this captioner learnt from photos at their own length, and a memory of texts "
                f"gives vectors of length 1: it is for captioners of --objective text"
            )
        if isinstance(config, ModelConfig) and config.texts_moved:
            raise ClipcapError(
                f"--memory {path}: this captioner learnt from texts moved to the mean of photos (--photos), and "
                f"needs no memory of texts: leave it out"
            )
        return cls(features.rows(np.arange(0, features.num_images, -(-features.num_images // LARGEST))), logit_scale)

    def project(self, images: Tensor) -> Tensor:
        """[N, D] → the mixture of texts that is nearest in cosine, of unit length, [N, D]."""
        self.texts = self.texts.to(images.device)
        found = []
        for part in F.normalize(images.float(), dim=1).split(ROWS):
            weights = (self.logit_scale * part @ self.texts.T).softmax(dim=1)  # [n, M]
            found.append(F.normalize(weights @ self.texts, dim=1))
        return torch.cat(found)
