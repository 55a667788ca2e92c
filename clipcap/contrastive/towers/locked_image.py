"""A projection of stored features beside a new text tower, as a dual encoder to train (LiT, arXiv 2111.07991)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import clipcap
from clipcap.contrastive.config import LockedImageConfig
from clipcap.contrastive.towers.base import Part, Towers
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.models.encoders.locked_image import (
    CONFIG,
    WEIGHTS,
    ImageNetwork,
    LockedImageNetwork,
    locked_image_folder,
    read_locked_image,
)
from clipcap.models.encoders.openai_weights import clip_token_lists
from clipcap.runtime.json_text import to_json

MEASURED = 20_000  # rows that mean and deviation are taken of
CONSTANT = 1e-6  # share of the largest deviation up to which a number counts as the same in all vectors


def locked_image_towers(config: LockedImageConfig, features: Features) -> LockedImageTowers:
    """A new text tower for features, or one to train on with.

    Raises:
        ClipcapError: --weights_dir is no such checkpoint, or of other sizes or another image network.
    """
    meta, sizes = features.meta, config.towers
    image = ImageNetwork(None if meta.encoder_guessed else meta.encoder, meta.encoder_weights_id)
    network = LockedImageNetwork(
        features.dim, sizes.embed_dim, sizes.text_width, sizes.text_layers, sizes.max_seq_length, config.dropout
    )
    towers = LockedImageTowers(network, image, (config.head_lr, 0.0, config.text_lr))
    if sizes.weights_dir is None:
        towers.standardise(features)
        return towers
    folder = locked_image_folder(sizes.weights_dir)
    if folder is None:
        raise ClipcapError(f"--weights_dir {sizes.weights_dir}: is no checkpoint of `clipcap contrastive features`")
    if read_locked_image(folder)[1] != image:
        raise ClipcapError(f"--weights_dir {sizes.weights_dir}: was trained on features of another image network")
    towers.restore(folder)
    return towers


class LockedImageTowers(Towers):
    """A text tower of OpenAI's architecture and a projection of an image network's vectors [B, W]."""

    def __init__(self, network: LockedImageNetwork, image: ImageNetwork, rates: tuple[float, float, float]):
        super().__init__()
        self.network, self.image, self.rates = network, image, rates
        self.width = network.image_projection.out_features
        self.max_tokens = network.positional_embedding.shape[0]

    def standardise(self, features: Features) -> None:
        """Take each number's mean and deviation from the features.

        A number that never changes there gets the largest deviation: another value of it later stays small.
        """
        rows = features.rows(slice(0, None, max(1, features.num_images // MEASURED)))  # [n, W]
        deviation = rows.std(dim=0)  # [W]
        largest = deviation.max() if deviation.max() > 0 else torch.ones(())
        self.network.image_mean.copy_(rows.mean(dim=0))
        self.network.image_deviation.copy_(torch.where(deviation > CONSTANT * largest, deviation, largest))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Vectors [B, W] → [B, D]."""
        return self.network.encode_vectors(pixels)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T] → [B, D]."""
        return self.network.encode_text(input_ids)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """CLIP's own byte pairs; start and end tokens are kept when a text is cut."""
        return clip_token_lists(texts, self.max_tokens)

    def part(self, name: str) -> Part:
        """Projections and temperature are the head; there is no image tower."""
        return "head" if name.split(".")[0] in ("image_projection", "text_projection", "logit_scale") else "text"

    def whole(self, pictures: Tensor) -> Tensor:
        """Vectors as they are."""
        return pictures

    @property
    def looks_at(self) -> str:
        """The width of the vectors and their network."""
        return f"features {len(self.network.image_mean)} wide of {self.image.name or 'an unknown encoder'}"

    def write(self, folder: Path) -> None:
        """The weights, and the name of the image network."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)
        content = {
            "format_version": 1, "clipcap_version": clipcap.__version__, "dual_encoder": WEIGHTS,
            "image_encoder": self.image.name, "image_weights_id": self.image.weights_id,
        }  # fmt: skip
        (folder / CONFIG).write_text(to_json(content, indent=2) + "\n", encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """Take the weights of a checkpoint of the same sizes."""
        stored = read_locked_image(folder)[0].state_dict()
        own = {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}
        for name in sorted(own.keys() | stored.keys()):
            theirs = tuple(stored[name].shape) if name in stored else "absent"
            if own.get(name, "absent") != theirs:
                raise ClipcapError(
                    f"{folder}: {name} is {theirs} there and {own.get(name, 'absent')} here: give the sizes that it "
                    f"was trained with"
                )
        self.network.load_state_dict(stored)
