"""Encoders of transformers: CLIP, SigLIP, VisionTextDualEncoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import FrozenEncoder, crop_extreme_aspect
from clipcap.models.encoders.pooling import image_features, max_text_tokens, text_features
from clipcap.runtime.hub import PretrainedClass, load_pretrained


class HFPreprocess:
    """An image processor of transformers as a function of one image; picklable for workers."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image → [3, R, R]."""
        return self.processor(images=crop_extreme_aspect(image), return_tensors="pt")["pixel_values"][0]


class HFEncoder(FrozenEncoder):
    """A dual encoder of transformers: `hf:NAME_OR_PATH` (CLIP, SigLIP, VisionTextDualEncoder)."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype):
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        network = _hf_part(AutoModel, name, "encoder", dtype=torch.float32)
        if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
            raise ClipcapError(
                f"{name} is a {network.config.model_type} model, which has no image and text tower: "
                f"choose a CLIP, SigLIP or VisionTextDualEncoder model"
            )
        super().__init__(name, network, device, dtype)
        self.preprocess = HFPreprocess(_hf_part(AutoImageProcessor, name, "image processor"))
        self._tokenizer = _hf_part(AutoTokenizer, name, "tokenizer")
        # SigLIP was trained on texts padded to 64 tokens; CLIP reads the end token, wherever it is.
        self._padding = "max_length" if network.config.model_type.startswith("siglip") else True
        self.dim = self._width()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self._run(image_features, self.network, pixels.to(self.device))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → [B, D]."""
        longest = max_text_tokens(self.network.config, self._tokenizer)
        tokens = self._tokenizer(
            list(texts), padding=self._padding, truncation=True, max_length=longest, return_tensors="pt"
        )
        tokens = tokens.to(self.device)  # SigLIP's tokenizer gives no mask: it reads its padding
        return self._run(text_features, self.network, tokens["input_ids"], tokens.get("attention_mask"))


def _hf_part(loader: PretrainedClass, name: str, what: str, **kwargs: Any) -> Any:
    """One part of `hf:NAME_OR_PATH`; errors spell the name as it was given."""
    flag = "--clip_model_type hf:"
    try:
        return load_pretrained(loader, name.removeprefix("hf:"), what, flag, **kwargs)
    except ClipcapError as error:
        raise ClipcapError(str(error).replace(f"{flag} ", flag)) from error
