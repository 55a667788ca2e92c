"""Dual encoders of transformers as networks to train: any image tower with any text tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPVisionModel,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.contrastive.config import TowersConfig
from clipcap.contrastive.towers.base import Part, Towers
from clipcap.errors import ClipcapError
from clipcap.models.encoders.clip_preprocess import CLIP_MEAN, CLIP_STD
from clipcap.models.encoders.flax_hybrid import hybrid_folder, hybrid_tokenizer, load_hybrid
from clipcap.models.encoders.pooling import PAIR, image_features, max_text_tokens, text_features
from clipcap.runtime.hub import load_pretrained


def paired_towers(config: TowersConfig) -> TransformersTowers:
    """An image and a text tower of transformers under new projections."""
    image_name, text_name = cast(str, config.vision_model), cast(str, config.text_model)  # both, or not this function
    vision = _tower(image_name, "--vision_model", "vision_config", CLIPVisionModel, config.from_scratch)
    text = _tower(text_name, "--text_model", "text_config", CLIPTextModel, config.from_scratch)
    if not hasattr(vision.config, "hidden_size"):  # ResNet and its kin: the width of the last stage
        vision.config.hidden_size = vision.config.hidden_sizes[-1]
    both = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=config.embed_dim
    )
    if not isinstance(text, CLIPTextModel):
        both.text_pooling = "mean"
    network = VisionTextDualEncoderModel(config=both, vision_model=vision, text_model=text)
    processor = _processor(image_name, vision.config, config.resolution)
    tokenizer = load_pretrained(AutoTokenizer, text_name, "tokenizer", "--text_model")
    image_lr, text_lr = (1e-3, 1e-3) if config.from_scratch else (1e-4, 1e-5)
    return TransformersTowers(network, processor, tokenizer, config.max_seq_length, (1e-3, image_lr, text_lr))


def _tower(name: str, flag: str, part: str, of_clip: type[PreTrainedModel], new: bool) -> PreTrainedModel:
    """A tower by name; of a CLIP, its own half."""
    config = load_pretrained(AutoConfig, name, "model", flag)
    loader: Any = AutoModel
    if config.model_type == "clip":
        config, loader = getattr(config, part), of_clip
    if new:
        return loader(config) if loader is of_clip else AutoModel.from_config(config)
    return load_pretrained(loader, name, "model", flag, config=config, dtype=torch.float32)


def dual_encoder_towers(name: str, config: TowersConfig) -> TransformersTowers:
    """A whole dual encoder of transformers, to be trained on."""
    place, flag = name.removeprefix("hf:"), "--clip_model_type hf:"
    hybrid = hybrid_folder(place)
    network = (
        load_hybrid(hybrid) if hybrid else load_pretrained(AutoModel, place, "encoder", flag, dtype=torch.float32)
    )
    if network.config.model_type not in (PAIR, "clip"):
        raise ClipcapError(
            f"--clip_model_type {name} is a {network.config.model_type} model: what can be trained is a CLIP, a "
            f"VisionTextDualEncoder, or any two towers given by --vision_model and --text_model"
        )
    processor = _processor(place, network.config.vision_config, config.resolution)
    if config.tokenizer:
        tokenizer = load_pretrained(AutoTokenizer, config.tokenizer, "tokenizer", "--tokenizer")
    elif hybrid and hybrid_tokenizer(hybrid, None) is None:
        raise ClipcapError(f"--clip_model_type {name}: its folder has no tokenizer: name it by --tokenizer NAME")
    else:
        tokenizer = load_pretrained(AutoTokenizer, place, "tokenizer", flag)
    return TransformersTowers(network, processor, tokenizer, config.max_seq_length, (1e-5, 1e-5, 1e-5))


def _processor(name: str, config: object, resolution: int) -> CLIPImageProcessor:
    """CLIP's way to make pixels, with the size, mean and deviation that the image tower is used to."""
    mean, std, size = CLIP_MEAN, CLIP_STD, getattr(config, "image_size", None)
    try:
        own = load_pretrained(AutoImageProcessor, name, "image processor", "--vision_model")
    except ClipcapError:
        own = None  # a folder of bare weights
    if own is not None:
        mean, std = getattr(own, "image_mean", mean), getattr(own, "image_std", std)
        size = _side(getattr(own, "crop_size", None)) or size or _side(getattr(own, "size", None))
    side = size if isinstance(size, int) else resolution
    return CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=mean, image_std=std
    )


def _side(size: Any) -> int | None:
    """The number of pixels in a processor's size: {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    values = [value for value in dict(size or {}).values() if value]
    return min(values) if values else None


class TransformersTowers(Towers):
    """A dual encoder of transformers, stored by `save_pretrained` with image processor and tokenizer."""

    def __init__(
        self,
        network: PreTrainedModel,
        processor: CLIPImageProcessor,
        tokenizer: Tokenizer,
        max_tokens: int | None,
        rates: tuple[float, float, float],
    ):
        super().__init__()
        self.network, self.processor, self.tokenizer, self.rates = network, processor, tokenizer, rates
        self.width = network.config.projection_dim
        self.resolution = cast(int, _side(processor.crop_size))  # `_processor` gives one
        self.mean, self.std = processor.image_mean, processor.image_std
        longest = max_text_tokens(network.config, tokenizer)
        self.max_tokens = tokenizer.model_max_length = min(max_tokens or longest, longest)
        if tokenizer.pad_token_id is None:  # GPT-2's
            tokenizer.pad_token = tokenizer.eos_token
        self.pad_id = cast(int, tokenizer.pad_token_id)
        self._freeze_idle()

    def _freeze_idle(self) -> None:
        """Parameters that no embedding depends on are not trained: a pooler under mean pooling, a mask token."""
        training, device = self.training, self.network.logit_scale.device
        self.eval()  # leaves running statistics alone
        ids = torch.tensor(self.tokenize(["a"]), device=device)
        pixels = torch.zeros(1, 3, self.resolution, self.resolution, device=device)
        (self.encode_images(pixels).sum() + self.encode_texts(ids, torch.ones_like(ids)).sum()).backward()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(parameter.grad is not None or name == "logit_scale")
            parameter.grad = None
        self.train(training)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return image_features(self.network, pixels)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T] → [B, D]."""
        return text_features(self.network, input_ids, attention_mask)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The text tower's own tokens."""
        found = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)
        return cast(list[list[int]], found["input_ids"])

    def part(self, name: str) -> Part:
        """Projections and temperature are the head."""
        parts: dict[str, Part] = {"vision_model": "image", "text_model": "text"}
        return parts.get(name.split(".")[0], "head")

    def write(self, folder: Path) -> None:
        """A folder for `hf:`."""
        for part in (self.network, self.processor, self.tokenizer):
            part.save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        """Take the weights of such a folder."""
        stored = load_pretrained(AutoModel, str(folder), "encoder", "--resume", dtype=torch.float32)
        self.network.load_state_dict(stored.state_dict())
