"""OpenAI's CLIP as a network to train, of any size, stored as `clip.load` and `--clip_model_type` take it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clipcap
from clipcap.contrastive.config import TowersConfig
from clipcap.contrastive.towers.base import Part, Towers
from clipcap.errors import ClipcapError
from clipcap.models.encoders.openai_weights import (
    WEIGHTS,
    build,
    clip_token_lists,
    load_openai_clip,
    read_openai_weights,
)
from clipcap.runtime.json_text import to_json

CONTEXT_LENGTH, VOCABULARY = 77, 49408  # of OpenAI's models and their tokenizer


def new_towers(config: TowersConfig) -> OpenAITowers:
    """A CLIP with random weights."""
    return OpenAITowers(new_clip(config), CONTEXT_LENGTH, (1e-3, 1e-3, 1e-3))


def loaded_towers(name: str, config: TowersConfig) -> OpenAITowers:
    """A CLIP by name or file, to be fine-tuned."""
    network: Any = load_openai_clip(name)
    return OpenAITowers(network, config.max_seq_length or network.context_length, (1e-5, 1e-5, 1e-5))


def new_clip(config: TowersConfig) -> nn.Module:
    """A CLIP of OpenAI's architecture with random weights.

    Sizes are limited to what can be read off the weights again: heads of width 64, a ResNet's input in steps of 32.
    """
    try:
        layers = [int(part) for part in config.vision_layers.split(",")]
    except ValueError:
        layers = []
    if len(layers) not in (1, 4) or min(layers) < 1:
        raise ClipcapError(
            f"--vision_layers {config.vision_layers}: give one number for a ViT (6), or four for a ResNet (3,4,6,3)"
        )
    step = config.patch_size if len(layers) == 1 else 32
    if config.resolution % step:
        what = "--patch_size" if len(layers) == 1 else "a ResNet's stride"
        raise ClipcapError(f"--resolution {config.resolution} is not a multiple of {step}, {what}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP
    return CLIP(
        embed_dim=config.embed_dim,
        image_resolution=config.resolution,
        vision_layers=layers[0] if len(layers) == 1 else (layers[0], layers[1], layers[2], layers[3]),
        vision_width=config.vision_width,
        vision_patch_size=config.patch_size,
        context_length=config.max_seq_length or CONTEXT_LENGTH,
        vocab_size=VOCABULARY,
        transformer_width=config.text_width,
        transformer_heads=config.text_width // 64,
        transformer_layers=config.text_layers,
    )


class OpenAITowers(Towers):
    """A network of OpenAI's `clip` package, stored as the plain float32 state dict that it loads."""

    def __init__(self, network: Any, max_tokens: int, rates: tuple[float, float, float]):
        super().__init__()
        self.network, self.rates = network, rates
        self.width = network.text_projection.shape[1]
        self.resolution = network.visual.input_resolution
        self.max_tokens = min(max_tokens, network.context_length)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self.network.encode_image(pixels)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T] → [B, D]. The tower looks back only, so padding after the end token changes nothing."""
        return self.network.encode_text(input_ids)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """CLIP's own byte pairs; the tokenizer's start and end tokens are kept when a text is cut."""
        return clip_token_lists(texts, self.max_tokens)

    def part(self, name: str) -> Part:
        """Projections and temperature are the head."""
        if name in ("visual.proj", "text_projection", "logit_scale"):
            return "head"
        return "image" if name.split(".")[0] == "visual" else "text"

    def write(self, folder: Path) -> None:
        """`clip.pt`, and a note of what it is."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        torch.save(state, folder / WEIGHTS)
        content = {"format_version": 1, "clipcap_version": clipcap.__version__, "dual_encoder": WEIGHTS}
        (folder / "config.json").write_text(to_json(content, indent=2) + "\n", encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """Take the weights of `clip.pt`."""
        self.network.load_state_dict(build(read_openai_weights(folder / WEIGHTS), folder / WEIGHTS).state_dict())
