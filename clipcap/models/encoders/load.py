"""Frozen encoders behind one small protocol: OpenAI's clip, open_clip, transformers, timm."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import torch

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import Encoder, pick_device, pick_dtype
from clipcap.models.encoders.distilvit2_folder import is_distilvit2
from clipcap.models.encoders.locked_image import LockedImageEncoder, locked_image_folder
from clipcap.models.encoders.names import IMPORTED
from clipcap.models.encoders.openai import OpenAIEncoder
from clipcap.runtime.heavy_imports import heavy_imports, transformers_package
from clipcap.runtime.safe_load.wrong_bytes import check_folder


def load_encoder(name: str, device: str = "auto", dtype: str | None = None, tokenizer: str | None = None) -> Encoder:
    """Load a frozen encoder.

    Args:
        name: an OpenAI name (`ViT-B/32`, `RN50x4`, …), a path to a checkpoint in OpenAI's format or to the folder of
            a run of `clipcap contrastive`, `open_clip:NAME/PRETRAINED`, `hf:NAME_OR_PATH` (CLIP, SigLIP,
            VisionTextDualEncoder, HybridCLIP as flax stored it, and image networks such as DINOv2, ViT and ConvNeXt),
            or `timm:NAME` and `timm:NAME/FILE`. Image networks have no text tower: their `encode_texts` refuses.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: float32, float16, bfloat16 or auto: float16 on a GPU, and on a CPU bfloat16 where the processor is
            faster in it (default: float16 on a GPU, else float32).
        tokenizer: name or folder of an `hf:` encoder's tokenizer, where it is elsewhere.

    Raises:
        ClipcapError: unknown name, missing or damaged weights, no such device.
    """
    if name.startswith(IMPORTED):
        raise ClipcapError(
            f"{name}: stands for embeddings that were made elsewhere and imported: nothing here encodes with it "
            f"(pass embeddings by --features, and for scores a second encoder by --score_with)"
        )
    place = pick_device(device)
    number = pick_dtype(dtype, place)
    if name.startswith("hf:"):
        return _load_hf(name, place, number, tokenizer)
    if name.startswith("timm:"):
        with heavy_imports():
            from clipcap.models.encoders.image_only import TimmEncoder
        return TimmEncoder(name, place, number)
    if name.startswith("open_clip:"):
        with heavy_imports():
            from clipcap.models.encoders.open_clip import OpenClipEncoder
        return OpenClipEncoder(name, place, number)
    if folder := locked_image_folder(name):
        load = partial(load_encoder, device=device, dtype=dtype)
        return cast(Encoder, LockedImageEncoder(name, folder, place, number, load))  # its preprocessing comes later
    return OpenAIEncoder(name, place, number)


def _load_hf(name: str, device: torch.device, dtype: torch.dtype, tokenizer: str | None) -> Encoder:
    """A dual encoder of transformers, or an image network, whichever the configuration is of."""
    config_class = transformers_package().AutoConfig
    with heavy_imports():
        from clipcap.models.encoders.distilvit2_tower import DistilVit2Tower
        from clipcap.models.encoders.flax_hybrid import hybrid_folder
        from clipcap.models.encoders.image_only import HFImageEncoder, is_image_only
        from clipcap.models.encoders.transformers_clip import HFEncoder, hf_part
    folder = Path(name.removeprefix("hf:")).expanduser()
    if folder.is_dir():
        check_folder(folder, f"--clip_model_type {name}")
    if is_distilvit2(folder):
        return DistilVit2Tower(name, device, dtype)
    if hybrid_folder(name.removeprefix("hf:")) is None and is_image_only(hf_part(config_class, name, "encoder")):
        return HFImageEncoder(name, device, dtype)
    return HFEncoder(name, device, dtype, tokenizer)
