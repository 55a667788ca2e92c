"""Frozen image networks without a text tower: of transformers (DINOv2, ViT, ConvNeXt, …) and of timm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2 as transforms
from transformers import PretrainedConfig

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import FrozenEncoder, Preprocess
from clipcap.models.encoders.clip_preprocess import crop_extreme_aspect
from clipcap.models.encoders.layer_outputs import trunk_map
from clipcap.models.encoders.token_spec import ImageMap
from clipcap.models.encoders.transformers_clip import hf_network, hf_preprocess, hidden_map
from clipcap.runtime.hub import absolute
from clipcap.runtime.safe_load.weights import check_floating, read_weights_file
from clipcap.runtime.text import one_line

PROBE = Image.linear_gradient("L").convert("RGB")  # 256 x 256, encoded for the width


class ImageOnlyEncoder(FrozenEncoder):
    """A frozen network that encodes images alone."""

    reads_texts = False

    def encode_texts(self, texts: Sequence[str]) -> NoReturn:
        """Always refused.

        Raises:
            ClipcapError: names what can stand in for the text tower.
        """
        raise ClipcapError(
            f"{self.name} has no text tower, and words cannot be compared with its images: choose an encoder that "
            f"has one (for CLIPScore and --rerank clip a second one: --score_with ENCODER), or train one for its "
            f"features by `clipcap contrastive features`"
        )

    def _measure(self) -> None:
        """Set the width by encoding one image twice: a network that draws random numbers is refused.

        Raises:
            ClipcapError: it cannot encode it, or does not give the same numbers again.
        """
        pixels = self.preprocess(PROBE)[None]  # [1, 3, R, R]
        try:
            first, again = self.encode_images(pixels), self.encode_images(pixels)  # [1, D] each
        except Exception as error:  # of foreign networks anything may come
            raise ClipcapError(f"{self.name}: cannot encode an image: {one_line(error)}") from error
        if first.ndim != 2 or not torch.allclose(first, again, rtol=1e-3, atol=1e-4):
            raise ClipcapError(
                f"{self.name}: gives one image {'other numbers each time' if first.ndim == 2 else 'no vector'}: "
                f"choose a network that encodes images"
            )
        self.dim = first.shape[1]


def is_image_only(config: PretrainedConfig) -> bool:
    """Whether transformers' model of this configuration reads images and no texts."""
    from transformers import AutoModel

    if type(config) not in AutoModel._model_mapping:
        return False
    kind: Any = AutoModel._model_mapping[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    return kind.main_input_name == "pixel_values" and not hasattr(kind, "get_text_features")


class HFImageEncoder(ImageOnlyEncoder):
    """An image network of transformers, `hf:NAME_OR_PATH`: DINOv2, DINOv3, ViT, ConvNeXt, SigLIP's vision half, ….

    The embedding is the network's pooled output where its weights are trained; else the class token's last hidden
    state, or, without one, the mean over all places.
    """

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype):
        from transformers import AutoImageProcessor, AutoModel

        network, pooler = hf_network(AutoModel, name, ("pooler.dense.weight", "pooler.dense.bias"))
        if pooler:
            network.pooler = None
        preprocess = hf_preprocess(AutoImageProcessor, name)
        self._hold(name, network, device, dtype, preprocess, pools=not pooler)

    def _hold(
        self,
        name: str,
        network: Any,
        device: torch.device,
        dtype: torch.dtype,
        preprocess: Preprocess,
        pools: bool = True,
    ) -> None:
        self._pools = pools  # a pooling layer that no file holds is drawn at random
        self._has_class_token = any(key.endswith("cls_token") for key, _ in network.named_parameters())
        super().__init__(name, network, device, dtype)
        self.preprocess = preprocess
        self._measure()

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self._vector(self.network(pixel_values=pixels))

    def _map(self, pixels: Tensor, layer: int) -> ImageMap:
        output = self.network(pixel_values=pixels, output_hidden_states=layer != -1)
        return hidden_map(self, output, self._vector(output), pixels, layer)

    def _vector(self, output: Any) -> Tensor:
        """The embedding [B, D] of what the network gives."""
        pooled = getattr(output, "pooler_output", None) if self._pools else None
        if pooled is not None:
            return pooled.flatten(1)  # [B, D] or [B, D, 1, 1]
        hidden = output.last_hidden_state  # [B, N, D], or a map [B, D, H, W]
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        return hidden[:, 0] if self._has_class_token else hidden.mean(1)


class TimmEncoder(ImageOnlyEncoder):
    """A network of timm (`pip install 'clipcap-toolkit[timm]'`): `timm:NAME`, or `timm:NAME/FILE` for own weights.

    The embedding is what timm's own classifier would read.
    """

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype):
        try:
            import timm
            from timm.data.config import resolve_model_data_config
            from timm.data.transforms_factory import create_transform
        except ImportError as error:
            raise ClipcapError(f"{name} needs the timm package: pip install 'clipcap-toolkit[timm]'") from error
        architecture, slash, file = name.removeprefix("timm:").partition("/")
        if not timm.is_model(architecture):
            near = ", ".join(timm.list_models(f"*{architecture[:6]}*")[:8]) or "listed by timm.list_models()"
            raise ClipcapError(f"{name}: timm has no model {architecture!r}; the nearest are {near}")
        try:
            network: Any = timm.create_model(architecture, pretrained=not slash, num_classes=0)
        except Exception as error:  # hub and network errors come as many types
            raise ClipcapError(
                f"{name}: its weights are not on this machine and cannot be downloaded ({one_line(error)}): "
                f"pass them as timm:{architecture}/FILE"
            ) from error
        if slash:
            _load_timm_weights(network, Path(file).expanduser(), name)
            name = f"timm:{architecture}/{absolute(file)}"
        super().__init__(name, network, device, dtype)
        transform: Any = create_transform(**resolve_model_data_config(network))
        self.preprocess = transforms.Compose([crop_extreme_aspect, transform])
        self._measure()

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self.network(pixels)

    def _map(self, pixels: Tensor, layer: int) -> ImageMap:
        try:
            return trunk_map(self.network, pixels, layer)
        except IndexError as error:
            raise self._no_layer(layer, error.args[0]) from error


def _load_timm_weights(network: Any, path: Path, name: str) -> None:
    """Fill in the tensors of a file; those of its classifier are not needed."""
    if not path.is_file():
        raise ClipcapError(f"--clip_model_type {name}: there is no file {path}")
    own = network.state_dict()
    stored = read_weights_file(path, (next(iter(own)),), "checkpoint of timm").tensors
    for key, tensor in own.items():
        if key not in stored:
            raise ClipcapError(f"{path}: tensor {key} is missing: these are weights of another network than {name}")
        if stored[key].shape != tensor.shape:
            raise ClipcapError(
                f"{path}: {key} is {list(stored[key].shape)} there and {list(tensor.shape)} in {name}: these are "
                f"weights of another network"
            )
    check_floating(((key, stored[key]) for key, tensor in own.items() if tensor.is_floating_point()), path)
    network.load_state_dict({key: stored[key] for key in own})
