"""Encoders of transformers: CLIP, SigLIP, VisionTextDualEncoder, and HybridCLIP as flax stored it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import FrozenEncoder
from clipcap.models.encoders.clip_preprocess import crop_extreme_aspect
from clipcap.models.encoders.flax_hybrid import hybrid_folder, hybrid_processor, hybrid_tokenizer, load_hybrid
from clipcap.models.encoders.layer_outputs import with_output_of
from clipcap.models.encoders.pooling import image_features, max_text_tokens, text_features
from clipcap.models.encoders.token_spec import ImageMap, image_map
from clipcap.models.limits import check_network_limits
from clipcap.models.pretrained import load_network
from clipcap.runtime.hub import PretrainedClass, load_pretrained
from clipcap.runtime.text import one_line

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_LARGEST = 4096  # pixels a side that an encoder reads
_FLAG = "--clip_model_type hf:"


class HFPreprocess:
    """An image processor of transformers as a function of one image; picklable for workers."""

    def __init__(self, processor: Any):
        self.processor = processor
        for size in (getattr(processor, "size", None), getattr(processor, "crop_size", None)):
            sides = [side for side in dict(size or {}).values() if side is not None]
            if any(type(side) is not int or not 0 < side <= _LARGEST for side in sides):
                raise ClipcapError(
                    f"preprocessor_config.json asks for images of {sides[:3]} pixels a side, and an encoder reads at "
                    f"most {_LARGEST:,}: fetch the file again"
                )

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image → [3, R, R]."""
        return self.processor(images=crop_extreme_aspect(image), return_tensors="pt")["pixel_values"][0]


class HFEncoder(FrozenEncoder):
    """A dual encoder of transformers: `hf:NAME_OR_PATH` (CLIP, SigLIP, VisionTextDualEncoder, flax's HybridCLIP)."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, tokenizer: str | None = None):
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        if folder := hybrid_folder(name.removeprefix("hf:")):
            self._hold(name, load_hybrid(folder), device, dtype)
            self.preprocess = HFPreprocess(hybrid_processor(self.network.config))
            self._tokenizer = hybrid_tokenizer(folder, tokenizer)
            self.dim = self.network.config.projection_dim
            return
        network, _ = hf_network(AutoModel, name, ("logit_scale", "logit_bias"))
        if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
            raise ClipcapError(
                f"{name} is a {network.config.model_type} model, which has no image and text tower: "
                f"choose a CLIP, SigLIP or VisionTextDualEncoder model"
            )
        self._hold(name, network, device, dtype)
        self.preprocess = hf_preprocess(AutoImageProcessor, name)
        self._tokenizer = text_tokenizer(AutoTokenizer, name, tokenizer, self.network.config)
        self.dim = self._width()

    def _width(self) -> int:
        """D, of a text or, where the folder has no tokenizer, of an image.

        Raises:
            ClipcapError: the network encodes neither.
        """
        try:
            if self._tokenizer is not None:
                return super()._width()
            return self.encode_images(self.preprocess(Image.new("RGB", (64, 64)))[None]).shape[1]
        except ClipcapError:
            raise
        except Exception as error:  # of foreign networks anything may come
            raise ClipcapError(f"{self.name}: its parts do not fit together: {one_line(error)}") from error

    def _hold(self, name: str, network: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(name, network, device, dtype)
        # SigLIP was trained on texts padded to 64 tokens; CLIP reads the end token, wherever it is.
        self._padding = "max_length" if network.config.model_type.startswith("siglip") else True

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return image_features(self.network, pixels)

    def _map(self, pixels: Tensor, layer: int) -> ImageMap:
        vision = self.network.vision_model
        asked = vision.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "output_hidden_states": layer != -1}), with_kwargs=True
        )
        try:
            vector, output = with_output_of(vision, lambda: image_features(self.network, pixels))
        finally:
            asked.remove()
        found = hidden_map(self, output, vector, pixels, layer)
        norm = getattr(getattr(vision, "vision_model", vision), "post_layernorm", None)
        if layer != -1 or norm is None or found.extra is None:
            return found
        # CLIP's last hidden states are before its last norm, unlike those of OpenAI's own towers and of SigLIP.
        return image_map(vector, norm(output.last_hidden_state), (found.places.shape[2], found.places.shape[3]))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → [B, D].

        Raises:
            ClipcapError: the folder of a hybrid CLIP has no tokenizer, and none was named.
        """
        if self._tokenizer is None:
            raise ClipcapError(
                f"{self.name}: its folder has no tokenizer: name the one it was trained with by --tokenizer NAME, "
                f"or store it with the weights: clipcap convert --tokenizer NAME"
            )
        longest = max_text_tokens(self.network.config, self._tokenizer)
        tokens = self._tokenizer(
            list(texts), padding=self._padding, truncation=True, max_length=longest, return_tensors="pt"
        )
        tokens = tokens.to(self.device)  # SigLIP's tokenizer gives no mask: it reads its padding
        return self._run(text_features, self.network, tokens["input_ids"], tokens.get("attention_mask"))

    def encode_token_ids(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings of tokenized texts.

        Args:
            input_ids: int64 [B, T], special tokens included.
            attention_mask: [B, T], 1 for tokens and 0 for padding; every token counts without it.
        Returns:
            clip_embedding float32 [B, D], not normalised.
        """
        mask = None if attention_mask is None else attention_mask.to(self.device)
        return self._run(text_features, self.network, input_ids.to(self.device), mask)


def text_tokenizer(auto: Any, name: str, tokenizer: str | None, config: Any) -> Any:
    """The tokenizer of a text tower, with a token to fill texts with; None where the folder has none.

    Args:
        auto: class of transformers that loads it.
        name: of the encoder.
        tokenizer: its own name, where the encoder's folder has none.
        config: of the encoder.
    Raises:
        ClipcapError: it cannot be had, or has more tokens than the text tower knows.
    """
    if tokenizer:
        found = load_pretrained(auto, tokenizer, "tokenizer", "--tokenizer")
    else:
        found = hf_part(auto, name, "tokenizer")
    if len(found) < 2 or len(found) <= len(found.all_special_ids):  # of a folder without its files
        return None
    if found.pad_token_id is None and found.eos_token_id is None:
        raise ClipcapError(f"{name}: its tokenizer has neither a pad_token nor an eos_token (tokenizer_config.json)")
    if found.pad_token_id is None:
        found.pad_token = found.eos_token  # as CLIP's is
    known = getattr(getattr(config, "text_config", config), "vocab_size", None)
    if known is not None and found.vocab_size > known:
        raise ClipcapError(
            f"{name}: its tokenizer has {found.vocab_size:,} tokens, its text tower knows {known:,}: they do not "
            f"belong together (--tokenizer names another)"
        )
    return found


def hidden_map(encoder: FrozenEncoder, output: Any, vector: Tensor, pixels: Tensor, layer: int) -> ImageMap:
    """The map of the hidden states that a vision network of transformers gives.

    Args:
        encoder: of the network.
        output: of the network; with all hidden states where `layer` is not the last.
        vector: [B, D].
        pixels: [B, 3, R, R].
        layer: counted from the end.
    Raises:
        ClipcapError: no such layer.
    """
    hidden = output.last_hidden_state
    if layer != -1:
        states = output.hidden_states[1:]  # before the first layer stand the embeddings
        if not -len(states) <= layer < 0:
            raise encoder._no_layer(layer, len(states))
        hidden = states[layer]
    if hidden.ndim == 4:
        return ImageMap(vector, None, hidden)  # [B, W, h, w]
    config = encoder.network.config
    patch = getattr(getattr(config, "vision_config", config), "patch_size", None)
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch) if type(patch) is int else None
    return image_map(vector, hidden, grid)


def hf_preprocess(auto: Any, name: str) -> HFPreprocess:
    """The preprocessing of `hf:NAME_OR_PATH`.

    Raises:
        ClipcapError: it cannot be had, as where a script has saved the network alone.
    """
    folder = Path(name.removeprefix("hf:")).expanduser()
    if folder.is_dir() and not any((folder / file).exists() for file in _PROCESSORS):
        raise ClipcapError(
            f"{_FLAG}{folder}: has no {_PROCESSORS[0]}: copy that of the model it was made from (or save it there: "
            f"AutoImageProcessor.from_pretrained(MODEL).save_pretrained(FOLDER))"
        )
    return HFPreprocess(hf_part(auto, name, "image processor"))


def hf_network(auto: Any, name: str, optional: Collection[str] = ()) -> tuple[Any, list[str]]:
    """The network of `hf:NAME_OR_PATH`, held against its files, and the optional tensors that they lack.

    Raises:
        ClipcapError: as `load_network`.
    """
    from transformers import AutoConfig

    config = hf_part(AutoConfig, name, "encoder")
    for part in (config, *(getattr(config, name, None) for name in ("vision_config", "text_config"))):
        if part is not None:
            check_network_limits(part, name)
    with _as_given():
        return load_network(auto, name.removeprefix("hf:"), "encoder", _FLAG, config, optional)


def hf_part(loader: PretrainedClass, name: str, what: str, **kwargs: Any) -> Any:
    """One part of `hf:NAME_OR_PATH`."""
    with _as_given():
        return load_pretrained(loader, name.removeprefix("hf:"), what, _FLAG, **kwargs)


@contextmanager
def _as_given() -> Iterator[None]:
    """Within, errors spell the name of an encoder as it was given, with nothing between prefix and name."""
    try:
        yield
    except ClipcapError as error:
        raise ClipcapError(str(error).replace(f"{_FLAG} ", _FLAG)) from error
