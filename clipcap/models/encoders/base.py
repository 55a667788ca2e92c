"""What every frozen encoder is: the protocol, device and dtype, preprocessing, and the shared part."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from clipcap.errors import ClipcapError
from clipcap.models.encoders.names import WIDTHS
from clipcap.models.encoders.token_spec import ImageMap
from clipcap.runtime.hub import absolute
from clipcap.runtime.text import one_line

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Result = TypeVar("Result")
Preprocess = Callable[[Image.Image], Tensor]


class Encoder(Protocol):
    """A frozen dual encoder. Embeddings are not normalised."""

    name: str  # as given to --clip_model_type
    weights_id: str  # fingerprint of the weights
    dim: int  # D
    device: torch.device
    dtype: torch.dtype  # what it computes in
    preprocess: Preprocess  # RGB image → [3, R, R]; can be sent to worker processes
    reads_texts: bool  # whether it has a text tower: `encode_texts` of others refuses

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → clip_embedding float32 [B, D]."""
        ...

    def encode_tokens(self, pixels: Tensor, layer: int = -1, pool: int = 0) -> tuple[Tensor, Tensor]:
        """[B, 3, R, R] → (clip_embedding [B, D], tokens [B, N, W]), float32, in one pass."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → clip_embedding float32 [B, D]; texts too long for the tower are cut."""
        ...


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        ClipcapError: the device is not there.
    """
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if device == "auto":
        return torch.device(next(kind for kind, number in count.items() if number))
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in count:
        raise ClipcapError(f"--device {device}: the devices are auto, cpu, cuda, cuda:N and mps")
    if (place.index or 0) >= count[place.type]:
        raise ClipcapError(
            f"--device {device} is not there: PyTorch sees {count[place.type]} of kind {place.type} here; "
            f"use --device auto"
        )
    return place


def _pack(network: nn.Module, dtype: torch.dtype) -> None:
    """Arrange the weights of a network for products in a dtype, where they can be."""
    # Its import takes that of transformers, and seconds.
    from clipcap.models.kernels.packed_linear import pack_for_rows, packable

    if packable(network, dtype):
        pack_for_rows(network, dtype)


def pick_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """None is float16 on a GPU and float32 elsewhere; `auto` as well, but on a CPU bfloat16 where that is faster."""
    if dtype in (None, "auto") and device.type == "cuda":
        return torch.float16
    if dtype == "auto" and device.type == "cpu":
        from clipcap.models.kernels.bfloat16 import pick_cpu_dtype  # imports transformers, which takes seconds

        return pick_cpu_dtype("auto")
    return DTYPES.get(dtype or "", torch.float32)


def weights_id(module: nn.Module) -> str:
    """Fingerprint of a network: names, shapes and a sample of every tensor, independent of dtype and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sample = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)][:64]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


class FrozenEncoder(ABC):
    """What the encoders share: a frozen network, run without gradients in its dtype."""

    dim: int
    preprocess: Preprocess
    reads_texts = True

    def __init__(self, name: str, network: nn.Module, device: torch.device, dtype: torch.dtype):
        library, colon, place = name.rpartition(":")
        # Stored with features and checkpoints. A folder here may be called RN50 without being meant.
        self.name = name if name in WIDTHS else library + colon + absolute(place)
        self.device, self.dtype = device, dtype
        self.weights_id = weights_id(network)
        self.network: Any = network.to(device).eval().requires_grad_(False)  # each library's own class
        if device.type == "cpu" and dtype == torch.bfloat16:
            _pack(network, dtype)  # autocast would convert every weight anew at each call

    def _run(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        return self._run_as_is(function, *inputs).float()

    def _run_as_is(self, function: Callable[..., Result], *inputs: Any) -> Result:
        # Autocast and not .half(): OpenAI's visual tower fails in bfloat16 and LayerNorms stay exact.
        reduced = self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=reduced):
            return function(*inputs)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax, as it was trained; CLIP's 100 where it has none."""
        scale = getattr(self.network, "logit_scale", None)
        return 100.0 if scale is None else float(scale.detach().float().exp())

    @property
    def image_modules(self) -> nn.Module:
        """What `embed_pixels` computes with."""
        return self.network

    @abstractmethod
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D], in the network's own dtype, as a graph to export: `encode_images` runs it."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → clip_embedding float32 [B, D].

        Raises:
            ClipcapError: the network takes no pixels of this size, as where its files do not belong together.
        """
        with self._refusing():
            return self._run(self.embed_pixels, pixels.to(self.device))

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Let what a network says of pixels of another size be one line."""
        try:
            yield
        except ClipcapError:
            raise
        except ValueError as error:
            raise ClipcapError(
                f"{self.name}: cannot encode an image: {one_line(error)}: its files do not belong together"
            ) from error

    def encode_tokens(self, pixels: Tensor, layer: int = -1, pool: int = 0) -> tuple[Tensor, Tensor]:
        """The vector and the tokens of images, in one pass.

        Args:
            pixels: [B, 3, R, R].
            layer: whose outputs are the tokens, counted from the end; of the last one they are those behind the last
                norm, where the network has one for them.
            pool: the grid is averaged to `pool` × `pool` places; 0 leaves it as it is.
        Returns:
            vectors float32 [B, D]; tokens float32 [B, N, W], class and register tokens before those of the grid.
        Raises:
            ClipcapError: the network has no such layer, or a smaller grid.
        """
        with self._refusing():
            found = self._run_as_is(self._map, pixels.to(self.device), layer)
        return found.vector.float(), found.tokens(pool).float()

    @abstractmethod
    def _map(self, pixels: Tensor, layer: int) -> ImageMap:
        """[B, 3, R, R] → vectors and the map of a layer."""

    def _no_layer(self, layer: int, count: int) -> ClipcapError:
        """The error of a layer that is not among `count` layers."""
        return ClipcapError(f"--layer {layer}: {self.name} has {count} layers, the first is {-count}")

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → [B, D]."""

    def _width(self) -> int:
        return self.encode_texts(["width"]).shape[1]
