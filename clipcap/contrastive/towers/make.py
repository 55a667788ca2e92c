"""Dual encoders that can be trained: OpenAI's CLIP at any size, and an image and a text tower of transformers."""

from __future__ import annotations

from clipcap.contrastive.config import TowersConfig
from clipcap.contrastive.towers.base import Towers
from clipcap.contrastive.towers.openai import loaded_towers, new_towers
from clipcap.contrastive.towers.transformers_pair import dual_encoder_towers, paired_towers
from clipcap.errors import ClipcapError
from clipcap.models.encoders.locked_image import locked_image_folder


def make_towers(config: TowersConfig) -> Towers:
    """The model that the options name, with its initial weights.

    Raises:
        ClipcapError: unknown or missing models, sizes that do not fit together.
    """
    name = config.clip_model_type
    if config.vision_model:
        return paired_towers(config)
    if name is None:
        return new_towers(config)
    if locked_image_folder(name):
        raise ClipcapError(
            f"--clip_model_type {name}: its image network stays as it is, and it learns from stored features: "
            f"train it on with `clipcap contrastive features --weights_dir {name}`"
        )
    return dual_encoder_towers(name, config) if name.startswith("hf:") else loaded_towers(name, config)
