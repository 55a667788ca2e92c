"""Encoders of OpenAI's own clip package, by name or by a checkpoint in its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import FrozenEncoder
from clipcap.models.encoders.clip_preprocess import ClipPreprocess
from clipcap.models.encoders.fast_image_tower import FastVisionTransformer, fast_image_tower
from clipcap.models.encoders.layer_outputs import clip_layers, clip_map
from clipcap.models.encoders.openai_weights import clip_tokens, load_openai_clip
from clipcap.models.encoders.token_spec import ImageMap, image_map


class OpenAIEncoder(FrozenEncoder):
    """OpenAI's own `clip` package, by name or by a checkpoint in its format."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype):
        network: Any = load_openai_clip(name)  # a class of OpenAI's package, which has no types
        super().__init__(name, network, device, dtype)
        self.dim = network.text_projection.shape[1]
        self.preprocess = ClipPreprocess(network.visual.input_resolution)
        if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
            network.visual = fast_image_tower(network.visual, dtype)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self.network.encode_image(pixels)

    def _map(self, pixels: Tensor, layer: int) -> ImageMap:
        visual = self.network.visual
        count = len(visual.blocks) if isinstance(visual, FastVisionTransformer) else len(clip_layers(visual))
        if not -count <= layer < 0:
            raise self._no_layer(layer, count)
        if isinstance(visual, FastVisionTransformer):
            return image_map(*visual.with_tokens(pixels, layer))
        return clip_map(visual, pixels, layer, batch_first=False)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → [B, D]."""
        tokens = clip_tokens(texts, self.network.context_length)  # [B, 77]
        if tokens.max() >= self.network.vocab_size:
            raise ClipcapError(
                f"{self.name}: its text tower knows {self.network.vocab_size} tokens, CLIP's tokenizer has 49408: "
                f"this checkpoint can encode images only"
            )
        return self._run(self.network.encode_text, tokens.to(self.device))
