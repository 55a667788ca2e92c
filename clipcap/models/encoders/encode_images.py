"""Image files to embeddings in batches; images that cannot be used are named, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from clipcap.images.read import REMARK, ImageError, ImageSource, open_image
from clipcap.models.encoders.base import Encoder
from clipcap.runtime.text import one_line

Frame = Literal["first", "middle"]


@dataclass(frozen=True)
class EncodedImages:
    """A batch of images."""

    numbers: list[int]  # of the images that were encoded
    embeddings: Tensor | None  # [len(numbers), D] float32; None where there are none
    bad: list[str]  # why the others cannot be used, a line each
    remarks: list[str]  # how some of those encoded had to be shown, a line each


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
            found = list(run(read, images[start : start + batch_size]))
            good = [(start + i, image) for i, image in enumerate(found) if isinstance(image, _Pixels)]
            tensors = [image.pixels for _, image in good]  # of [3, R, R]
            yield EncodedImages(
                [number for number, _ in good],
                encoder.encode_images(torch.stack(tensors)) if good else None,  # [B, 3, R, R] -> [B, D]
                [reason for reason in found if isinstance(reason, str)],
                [image.remark for _, image in good if image.remark],
            )


class _Pixels(NamedTuple):
    """A preprocessed image."""

    pixels: Tensor  # [3, R, R]
    remark: str | None  # how it had to be shown


def _read(encoder: Encoder, decode: Callable[[ImageSource], Image.Image], image: ImageSource) -> _Pixels | str:
    """The pixels of an image, or why there are none."""
    try:
        picture = decode(image)
    except ImageError as error:
        return str(error)
    try:
        return _Pixels(encoder.preprocess(picture), picture.info.get(REMARK))
    except Exception as error:  # one odd image must not end the run
        name = image if isinstance(image, str | Path) else "an image"
        return f"{name}: cannot be preprocessed ({one_line(error)})"
