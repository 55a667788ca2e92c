"""A text tower for an image network that stays as it is (locked-image tuning, arXiv 2111.07991).

The network's vectors are standardised and projected into the space of a text tower of OpenAI's architecture. Only the
projection and the text tower are stored; photos are encoded by the image network, which is named beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import FrozenEncoder
from clipcap.models.encoders.openai_weights import LONGEST_CONTEXT, clip_package, clip_tokens
from clipcap.models.encoders.token_spec import ImageMap
from clipcap.models.without_memory import without_memory
from clipcap.runtime.files import best_checkpoint_in
from clipcap.runtime.safe_load.weights import check_finite, check_floating
from clipcap.runtime.safe_load.wrong_bytes import check_weights_file
from clipcap.runtime.text import one_line

WEIGHTS, CONFIG = "locked_image.safetensors", "config.json"
VOCABULARY = 49408  # of CLIP's tokenizer
_TEXT_PARTS = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection", "logit_scale")


@dataclass(frozen=True)
class ImageNetwork:
    """The image network whose vectors are projected.

    Attributes:
        name: as given to --clip_model_type; `import:NAME` of vectors made elsewhere; None where it is not known.
        weights_id: fingerprint of its weights, where it is known.
    """

    name: str | None
    weights_id: str | None


class LockedImageNetwork(nn.Module):
    """A projection of vectors [B, W] and a text tower, into one space of width D.

    Args:
        image_width: W.
        width: D.
        text_width, text_layers: of the text tower; its heads are 64 wide.
        context_length: longest text in tokens.
        dropout: of the standardised vectors and of the embedded tokens, in training.
    """

    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter  # [context length, text width]
    transformer: nn.Module
    ln_final: nn.Module
    text_projection: nn.Parameter  # [text width, D]
    logit_scale: nn.Parameter
    image_mean: Tensor  # [W]
    image_deviation: Tensor  # [W]

    def __init__(
        self,
        image_width: int,
        width: int,
        text_width: int,
        text_layers: int,
        context_length: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        clip = clip_package().model.CLIP(  # for its text tower and that tower's initial weights
            embed_dim=width, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=32,
            context_length=context_length, vocab_size=VOCABULARY, transformer_width=text_width,
            transformer_heads=text_width // 64, transformer_layers=text_layers,
        )  # fmt: skip
        for name in _TEXT_PARTS:
            setattr(self, name, getattr(clip, name))
        self.image_projection = nn.Linear(image_width, width)
        self.register_buffer("image_mean", torch.zeros(image_width))
        self.register_buffer("image_deviation", torch.ones(image_width))
        self.dropout = nn.Dropout(dropout)

    def encode_vectors(self, vectors: Tensor) -> Tensor:
        """[B, W] → [B, D]."""
        return self.image_projection(self.dropout((vectors - self.image_mean) / self.image_deviation))

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """[B, T] → [B, D]; the tower looks back only, so padding after the end token changes nothing."""
        embedded = self.dropout(self.token_embedding(input_ids)) + self.positional_embedding[: input_ids.shape[1]]
        hidden = self.ln_final(self.transformer(embedded.transpose(0, 1)).transpose(0, 1))  # [B, T, text width]
        last = input_ids.argmax(dim=1)  # the end token has the highest number
        return hidden[torch.arange(len(hidden), device=hidden.device), last] @ self.text_projection


def locked_image_folder(name: str) -> Path | None:
    """The checkpoint folder that a name means, or the best one of the run whose folder it is; None otherwise."""
    path = Path(name).expanduser()
    if (path / WEIGHTS).is_file():
        return path
    return best_checkpoint_in(path, lambda p: (p / WEIGHTS).is_file()) if path.is_dir() else None


def projected_network(name: str) -> str | None:
    """The name of the image network whose vectors an encoder projects; None for encoders that project none."""
    folder = locked_image_folder(name)
    try:
        return None if folder is None else _image_network(folder).name
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _image_network(folder: Path) -> ImageNetwork:
    content: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return ImageNetwork(content["image_encoder"], content["image_weights_id"])


def read_locked_image(folder: Path) -> tuple[LockedImageNetwork, ImageNetwork]:
    """The network of a checkpoint folder, and the image network whose vectors it projects.

    Raises:
        ClipcapError: damaged, or not such a checkpoint.
    """
    path = folder / WEIGHTS
    check_weights_file(path)
    try:
        state = load_file(path)
        image = _image_network(folder)
        layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
        context, text_width = state["positional_embedding"].shape
        if context > LONGEST_CONTEXT:
            raise ValueError(f"a text tower of {context:,} positions")
        sizes = (len(state["image_mean"]), state["text_projection"].shape[1], text_width, layers, context)
        with without_memory():  # compares all sizes before anything is allocated
            LockedImageNetwork(*sizes).load_state_dict(state, assign=True)
        network = LockedImageNetwork(*sizes)
        network.load_state_dict(state)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        raise ClipcapError(f"{path}: missing or damaged ({one_line(error)[:160]}): copy the folder again") from error
    check_finite(state, path)
    check_floating(state.items(), path)
    return network, image


class LockedImageEncoder(FrozenEncoder):
    """What `clipcap contrastive features` trains: texts by its own tower, photos by the image network it names.

    Args:
        name: a checkpoint folder, or that of the run.
        folder: of the checkpoint.
        device, dtype: as of any encoder.
        load: makes the image network's encoder of its name, when a photo is first encoded.
    """

    def __init__(self, name: str, folder: Path, device: torch.device, dtype: torch.dtype, load: Callable[[str], Any]):
        network, self.image = read_locked_image(folder)
        super().__init__(name, network, device, dtype)
        self.dim = network.text_projection.shape[1]
        self.image_width = len(network.image_mean)
        self._load = load

    @cached_property
    def image_encoder(self) -> FrozenEncoder:
        """The image network.

        Raises:
            ClipcapError: it is not known or not here, or has other weights than those of the vectors.
        """
        if self.image.name is None:
            raise ClipcapError(
                f"{self.name}: was trained on vectors of an image network that is not known: it encodes texts, and "
                f"projects such vectors by `clipcap features project`, but not photos"
            )
        found = cast(FrozenEncoder, self._load(self.image.name))
        if self.image.weights_id not in (None, found.weights_id):
            raise ClipcapError(
                f"{self.name}: was trained on vectors of {self.image.name} with weights {self.image.weights_id}, and "
                f"that has weights {found.weights_id} now: put the old ones back, or train anew"
            )
        return found

    def __getattr__(self, name: str) -> Any:
        if name == "preprocess":  # the image network's own, which is loaded for it
            return self.image_encoder.preprocess
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    @property
    def image_modules(self) -> nn.Module:
        """What `embed_pixels` computes with."""
        return nn.ModuleList([self.network, self.image_encoder.image_modules])

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors of the image network [B, W] → clip_embedding float32 [B, D]."""
        return self._run(self.network.encode_vectors, vectors.to(self.device))

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self.network.encode_vectors(self.image_encoder.embed_pixels(pixels))

    def _map(self, pixels: Tensor, layer: int) -> ImageMap:
        found = self.image_encoder._map(pixels, layer)
        return found._replace(vector=self.network.encode_vectors(found.vector))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → [B, D]."""
        tokens = clip_tokens(texts, self.network.positional_embedding.shape[0])  # [B, T]
        longest = int(tokens.argmax(dim=1).max()) + 1  # padding costs time and changes nothing
        return self._run(self.network.encode_text, tokens[:, :longest].to(self.device))
