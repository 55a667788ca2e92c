"""Images as callers pass them: paths, bytes, open files, Pillow images, arrays of pixels, embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipcap.captioning.addresses import fetch_photo, is_address
from clipcap.errors import ClipcapError
from clipcap.images.read import open_image
from clipcap.models.encoders.base import Encoder

ImageLike = str | Path | bytes | BinaryIO | Image.Image


def embed_pictures(encoder: Encoder, pictures: Iterable[ImageLike], upright: bool = True) -> Tensor:
    """Read and encode images, float32 [B, D].

    Raises:
        ClipcapError: one cannot be read.
    """
    return encoder.encode_images(torch.stack([encoder.preprocess(open_image(p, upright=upright)) for p in pictures]))


def is_image(value: Any) -> bool:
    """Whether a value is an image as a caller passes it: a path, bytes, an open file or a Pillow image."""
    return isinstance(value, str | Path | bytes | Image.Image) or hasattr(value, "read")


def is_picture(value: Any) -> bool:
    """Whether a value is the pixels of a picture: uint8 [H, W, 3] or [H, W]."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or not value.size:
        return False
    return value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3)


def as_image(value: Any) -> Any:
    """The pixels of a picture as a Pillow image, an http address as the photo there; other values as they are.

    Raises:
        ImageError: the photo cannot be downloaded.
    """
    if is_picture(value):
        return Image.fromarray(value)
    return fetch_photo(value) if is_address(value) else value


def listed(images: Any) -> list:
    """Images, or embeddings [N, D], one by one.

    Raises:
        ClipcapError: it is a single one, or none.
    """
    array = images.numpy(force=True) if isinstance(images, Tensor) else images
    embedding = isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "fiu"
    if is_image(images) or embedding:
        raise ClipcapError("images is a list of images: put a single one in brackets")
    try:
        return list(images)
    except TypeError as error:
        raise ClipcapError(f"images is a list of images, not {images!r:.60}") from error


def embedding_of(embedding: Tensor | np.ndarray, number: int, width: int) -> Tensor:
    """An embedding [D], or [1, D], of image `number` as a float32 tensor [D].

    Raises:
        ClipcapError: it is of another width, or not finite.
    """
    size = math.prod(embedding.shape)
    if embedding.ndim > 1 and size != width:
        shape = " x ".join(map(str, embedding.shape))
        raise ClipcapError(
            f"image {number} is an array of {shape}, no embedding of {width}: pass a picture as a Pillow image"
        )
    if size != width:
        raise ClipcapError(f"embedding {number} is {size} wide, this model expects {width}")
    if isinstance(embedding, np.ndarray):
        embedding = torch.from_numpy(embedding.astype(np.float32))  # a copy: torch warns of read-only memory
    flat = embedding.flatten()
    if not flat.isfinite().all():
        raise ClipcapError(f"embedding {number} is not finite: encode its image again")
    return flat.float()
