"""An encoder's preprocessing as numbers that another program can follow, tried against the encoder's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from clipcap.deploy.onnx_captioner import preprocess
from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.clip_preprocess import CLIP_MEAN, CLIP_STD, ClipPreprocess
from clipcap.models.encoders.transformers_clip import HFPreprocess

LEVELS = 2.5  # grey levels of 255 by which two ways to resize may differ (torchvision's own and Pillow's: one)
FILTERS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
How = dict[str, Any]


def describe_preprocessing(encoder: Encoder) -> How:
    """How images become the encoder's pixels, as `onnx_captioner.preprocess` takes it.

    Raises:
        ClipcapError: its preprocessing is of another kind.
    """
    own = encoder.preprocess
    how = _of_processor(own.processor) if isinstance(own, HFPreprocess) else None
    how = _of_clip(own.resolution) if isinstance(own, ClipPreprocess) else how
    how = how or _of_transforms(getattr(own, "transforms", ()))
    if how is None or any(_away(encoder, how, probe) > LEVELS for probe in _probes(how)):
        raise ClipcapError(
            f"{encoder.name}: its preprocessing is not one of resizing, cutting out the middle and scaling, which an "
            f"export can describe"
        )
    return how


def _of_clip(resolution: int) -> How:
    crop = {"crop": [resolution] * 2, "mean": list(CLIP_MEAN), "std": list(CLIP_STD)}
    return _resized(resolution, "bicubic") | crop


def _of_transforms(steps: Any) -> How | None:
    """Of torchvision's transforms, nested or not."""
    how: How = {"filter": "bilinear", "crop": None, "mean": [0, 0, 0], "std": [1, 1, 1]}
    for step in _flat(steps):
        kind = type(step).__name__
        if kind == "Resize":
            how |= _resized(step.size, getattr(step.interpolation, "value", step.interpolation))
        elif kind == "CenterCrop":
            size = [step.size] * 2 if isinstance(step.size, int) else list(step.size)
            how["crop"] = size
        elif kind == "Normalize":
            how |= {"mean": [float(x) for x in step.mean], "std": [float(x) for x in step.std]}
    return how if "shorter" in how or "size" in how else None


def _flat(steps: Any) -> Iterator[Any]:
    for step in steps:
        yield from _flat(step.transforms) if hasattr(step, "transforms") else [step]


def _resized(size: Any, interpolation: Any) -> How:
    sides = [size] if isinstance(size, int) else list(size)
    how: How = {"shorter": sides[0]} if len(sides) == 1 else {"size": sides}
    return how | {"filter": FILTERS.get(interpolation, "bicubic")}


def _of_processor(processor: Any) -> How | None:
    """Of an image processor of transformers."""
    size, crop = dict(getattr(processor, "size", None) or {}), dict(getattr(processor, "crop_size", None) or {})
    if shorter := size.get("shortest_edge"):
        how = _resized(int(shorter), int(processor.resample))
    elif size.get("height"):
        how = _resized([int(size["height"]), int(size["width"])], int(processor.resample))
    else:
        return None
    cropped = getattr(processor, "do_center_crop", False) and crop.get("height")
    how["crop"] = [int(crop["height"]), int(crop["width"])] if cropped else None
    return how | {
        "mean": [float(x) for x in processor.image_mean or CLIP_MEAN],
        "std": [float(x) for x in processor.image_std or CLIP_STD],
    }


def _probes(how: How) -> list[Image.Image]:
    """Pictures of several shapes, rough enough to show a shift by one pixel."""
    side = how["shorter"] if "shorter" in how else how["size"][0]
    random = np.random.default_rng(0)
    shapes = ((2 * side + 1, 3 * side + 2), (3 * side + 5, 2 * side), (side // 2, side // 2 + 3))
    return [Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def _away(encoder: Encoder, how: How, probe: Image.Image) -> float:
    """The largest difference between the described pixels and the encoder's own, in grey levels."""
    own, described = encoder.preprocess(probe).numpy(), preprocess(probe, how)  # [3, R, R] each
    if own.shape != described.shape:
        return float("inf")
    scale = 255 * np.array(how["std"])[:, None, None]
    return float((np.abs(own - described) * scale).max())
