"""Frozen image and text encoders behind one small protocol: OpenAI's clip, open_clip, transformers."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2 as transforms

from clipcap.errors import ClipcapError
from clipcap.models.encoders.fast_image_tower import fast_image_tower
from clipcap.models.encoders.openai_weights import OPENAI_URLS, load_openai_clip, tokenize, within_reach
from clipcap.models.encoders.pooling import image_features, max_text_tokens, text_features
from clipcap.runtime.hub import PretrainedClass, absolute, load_pretrained, one_line

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RIBBON = 32  # images longer than this many times their width are cut
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Preprocess = Callable[[Image.Image], Tensor]


class Encoder(Protocol):
    """A frozen dual encoder. Embeddings are not normalised."""

    name: str  # as given to --clip_model_type
    weights_id: str  # fingerprint of the weights
    dim: int  # D
    device: torch.device
    dtype: torch.dtype  # what it computes in
    preprocess: Preprocess  # RGB image → [3, R, R]; can be sent to worker processes

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → clip_embedding float32 [B, D]."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → clip_embedding float32 [B, D]; texts too long for the tower are cut."""


def load_encoder(name: str, device: str = "auto", dtype: str = "auto") -> Encoder:
    """Load a frozen encoder.

    Args:
        name: an OpenAI name (`ViT-B/32`, `RN50x4`, …), a path to a checkpoint in OpenAI's format,
            `open_clip:NAME/PRETRAINED`, or `hf:NAME_OR_PATH` (CLIP, SigLIP, VisionTextDualEncoder).
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (float16 on a GPU, else float32), float32, float16 or bfloat16.

    Raises:
        ClipcapError: unknown name, missing or damaged weights, no such device.
    """
    place = pick_device(device)
    number = pick_dtype(dtype, place)
    if name.startswith("hf:"):
        return HFEncoder(name, place, number)
    if name.startswith("open_clip:"):
        return OpenClipEncoder(name, place, number)
    return OpenAIEncoder(name, place, number)


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


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is float16 on a GPU and float32 elsewhere."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return DTYPES[dtype]


def weights_id(module: nn.Module) -> str:
    """Fingerprint of a network: names, shapes and a sample of every tensor, independent of dtype and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sample = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)][:64]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def clip_preprocess(resolution: int) -> Preprocess:
    """CLIP's own preprocessing: shorter side to `resolution` (bicubic), centre crop, scale, normalise."""
    return transforms.Compose(
        [
            cut_ribbon,
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(resolution),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )


def cut_ribbon(image: Image.Image) -> Image.Image:
    """The middle of an image far longer than wide; others as they are.

    Preprocessing keeps the middle alone, but enlarges all of the image before: one of 1 x 100,000 pixels would
    take 15 GB.
    """
    width, height = image.size
    longest = RIBBON * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, width - left, height - top))


class _Frozen:
    """What the encoders share: a frozen network, run without gradients in its dtype."""

    def __init__(self, name: str, network: nn.Module, device: torch.device, dtype: torch.dtype):
        library, colon, place = name.rpartition(":")
        # Stored with features and checkpoints. A folder here may be called RN50 without being meant.
        self.name = name if name in OPENAI_URLS else library + colon + absolute(place)
        self.device, self.dtype = device, dtype
        self.weights_id = weights_id(network)
        self.network = network.to(device).eval().requires_grad_(False)

    def _run(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        # Autocast and not .half(): OpenAI's visual tower fails in bfloat16 and LayerNorms stay exact.
        reduced = self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=reduced):
            return function(*inputs).float()

    def _width(self) -> int:
        return self.encode_texts(["width"]).shape[1]


class OpenAIEncoder(_Frozen):
    """OpenAI's own `clip` package, by name or by a checkpoint in its format."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype):
        network = load_openai_clip(name)
        super().__init__(name, network, device, dtype)
        self.dim = network.text_projection.shape[1]
        self.preprocess = clip_preprocess(network.visual.input_resolution)
        if device.type == "cpu" and dtype == torch.float32:
            network.visual = fast_image_tower(network.visual)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self._run(self.network.encode_image, pixels.to(self.device))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → [B, D]."""
        tokens = tokenize(texts, self.network.context_length)  # [B, 77]
        if tokens.max() >= self.network.vocab_size:
            raise ClipcapError(
                f"{self.name}: its text tower knows {self.network.vocab_size} tokens, CLIP's tokenizer has 49408: "
                f"this checkpoint can encode images only"
            )
        return self._run(self.network.encode_text, tokens.to(self.device))


class OpenClipEncoder(_Frozen):
    """open_clip (`pip install 'clipcap[open_clip]'`): `open_clip:NAME/PRETRAINED`.

    PRETRAINED is a tag of open_clip or a file; NAME may also be open_clip's own `hf-hub:USER/NAME` or
    `local-dir:FOLDER`, which bring their weights.
    """

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype):
        try:
            import open_clip
        except ImportError as error:
            raise ClipcapError(f"{name} needs the open_clip package: pip install 'clipcap[open_clip]'") from error
        architecture, pretrained, quick_gelu = _open_clip_parts(name)
        logging_level = logging.root.manager.disable
        logging.disable()  # open_clip logs what it then raises
        try:
            network, preprocess = open_clip.create_model_from_pretrained(
                architecture, pretrained, precision="fp32", force_quick_gelu=quick_gelu
            )
            self._tokenize = open_clip.get_tokenizer(architecture)
        except Exception as error:  # hub, file and shape errors come as many types
            raise ClipcapError(f"{name}: cannot load the weights: {one_line(error)}") from error
        finally:
            logging.disable(logging_level)
        super().__init__(name, network, device, dtype)
        self.preprocess = transforms.Compose([cut_ribbon, preprocess])
        self.dim = self._width()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[B, 3, R, R] → [B, D]."""
        return self._run(self.network.encode_image, pixels.to(self.device))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts → [B, D]."""
        tokens = self._tokenize([within_reach(text) for text in texts])  # [B, 77]
        return self._run(self.network.encode_text, tokens.to(self.device))


def _open_clip_parts(name: str) -> tuple[str, str | None, bool]:
    """(architecture, weights, whether they were trained with the quick GELU) of `open_clip:NAME/PRETRAINED`."""
    import open_clip

    whole = name.removeprefix("open_clip:")
    if whole.startswith(("hf-hub:", "local-dir:")):
        return whole, None, False
    architecture, _, pretrained = whole.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, 8, 0.4) or known[:8]
        raise ClipcapError(f"{name}: open_clip has no model {architecture!r}; the nearest are {', '.join(near)}")
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:8]) or "none, pass a file"
        raise ClipcapError(f"{name}: which weights? open_clip:{architecture}/PRETRAINED, one of: {tags}")
    # open_clip only warns where the architecture's GELU is not the one the weights were trained with.
    quick_gelu = (open_clip.get_pretrained_cfg(architecture, pretrained) or {}).get("quick_gelu", False)
    return architecture, pretrained, quick_gelu


class HFPreprocess:
    """An image processor of transformers as a function of one image; picklable for workers."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image → [3, R, R]."""
        return self.processor(images=cut_ribbon(image), return_tensors="pt")["pixel_values"][0]


class HFEncoder(_Frozen):
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
