"""Image files to embeddings in batches; images that cannot be used are named, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from clipcap.images.read import ImageError, ImageSource, open_image
from clipcap.models.encoders.base import Encoder
from clipcap.runtime.text import one_line

Frame = Literal["first", "middle"]


@dataclass(frozen=True)
class EncodedImages:
    """A batch of images."""

    numbers: list[int]  # of the images that were encoded
    embeddings: Tensor | None  # [len(numbers), D] float32; None where there are none
    bad: list[str]  # why the others cannot be used, a line each


def encode_images(
    encoder: Encoder,
    images: Sequence[ImageSource],
    batch_size: int,
    *,
    upright: bool = True,
    frame: Frame = "first",
    threads: int = 1,
) -> Iterator[EncodedImages]:
    """Decode and encode images, a batch at a time.

    Args:
        images: paths, bytes, open files or Pillow images, N.
        batch_size: images encoded together.
        upright: turn photos as their EXIF orientation says.
        frame: which frame of an animation.
        threads: that decode; with more than one, no open file may be given twice.
    Returns:
        the batches in order; each is decoded when it is asked for.
    """
    read = partial(_read, encoder, partial(open_image, upright=upright, frame=frame))
    with ExitStack() as stack:
        run = stack.enter_context(ThreadPoolExecutor(threads)).map if threads > 1 else map
        for start in range(0, len(images), batch_size):
            found = list(run(read, images[start : start + batch_size]))  # of [3, R, R], or the reason
            good = [i for i, pixels in enumerate(found) if isinstance(pixels, Tensor)]
            tensors = [pixels for pixels in found if isinstance(pixels, Tensor)]  # of [3, R, R]
            yield EncodedImages(
                [start + i for i in good],
                encoder.encode_images(torch.stack(tensors)) if good else None,  # [B, 3, R, R] -> [B, D]
                [reason for reason in found if isinstance(reason, str)],
            )


def _read(encoder: Encoder, decode: Callable[[ImageSource], Image.Image], image: ImageSource) -> Tensor | str:
    """Pixels [3, R, R] of an image, or why there are none."""
    try:
        picture = decode(image)
    except ImageError as error:
        return str(error)
    try:
        return encoder.preprocess(picture)
    except Exception as error:  # one odd image must not end the run
        name = image if isinstance(image, str | Path) else "an image"
        return f"{name}: cannot be preprocessed ({one_line(error)})"
