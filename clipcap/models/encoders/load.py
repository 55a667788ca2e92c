"""Frozen image and text encoders behind one small protocol: OpenAI's clip, open_clip, transformers."""

from __future__ import annotations

from clipcap.models.encoders.base import Encoder, pick_device, pick_dtype
from clipcap.models.encoders.open_clip import OpenClipEncoder
from clipcap.models.encoders.openai import OpenAIEncoder
from clipcap.models.encoders.transformers_clip import HFEncoder


def load_encoder(name: str, device: str = "auto", dtype: str = "auto", tokenizer: str | None = None) -> Encoder:
    """Load a frozen encoder.

    Args:
        name: an OpenAI name (`ViT-B/32`, `RN50x4`, …), a path to a checkpoint in OpenAI's format,
            `open_clip:NAME/PRETRAINED`, or `hf:NAME_OR_PATH` (CLIP, SigLIP, VisionTextDualEncoder, and HybridCLIP
            as flax stored it).
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (float16 on a GPU, else float32), float32, float16 or bfloat16.
        tokenizer: name or folder of an `hf:` encoder's tokenizer, where it is elsewhere.

    Raises:
        ClipcapError: unknown name, missing or damaged weights, no such device.
    """
    place = pick_device(device)
    number = pick_dtype(dtype, place)
    if name.startswith("hf:"):
        return HFEncoder(name, place, number, tokenizer)
    if name.startswith("open_clip:"):
        return OpenClipEncoder(name, place, number)
    return OpenAIEncoder(name, place, number)
