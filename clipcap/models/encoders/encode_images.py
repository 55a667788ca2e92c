"""Image files to embeddings in batches; images that cannot be used are named, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from clipcap.images.read import MAX_PIXELS, REMARK, ImageError, ImageSource, open_frames, open_image
from clipcap.models.encoders.base import Encoder, Preprocess
from clipcap.models.encoders.encode_given import encode_given, views_of
from clipcap.models.encoders.token_spec import TokenSpec
from clipcap.models.given import Given
from clipcap.runtime.text import one_line

Frame = Literal["first", "middle"]


@dataclass(frozen=True)
class EncodedImages:
    """A batch of images, by their numbers in the run."""

    numbers: list[int]  # of the images that were encoded
    given: Given | None  # of them, with vectors [len(numbers), D] float32; None where there are none
    bad: dict[int, ImageError] = field(default_factory=dict)  # why the others cannot be used
    remarks: list[str] = field(default_factory=list)  # how some of those encoded had to be shown, a line each
    looks: list[Any] = field(default_factory=list)  # what `look` returned of those encoded

    @property
    def embeddings(self) -> Tensor | None:
        """Their vectors alone."""
        return None if self.given is None else self.given.vectors


class Pixels(NamedTuple):
    """A preprocessed image."""

    pixels: Tensor  # [V, 3, R, R], 1 view but for crops and frames
    remark: str | None  # how it had to be shown
    look: Any = None


def read_pixels(
    preprocess: Preprocess,
    image: ImageSource,
    *,
    upright: bool = True,
    frame: Frame = "first",
    max_pixels: int = MAX_PIXELS,
    look: Callable[[Image.Image], Any] | None = None,
    tokens: TokenSpec | None = None,
) -> Pixels:
    """Decode and preprocess one image; the options are those of `encode_images`.

    Raises:
        ImageError: it cannot be used.
    """
    if tokens and tokens.kind == "frames":
        pictures = open_frames(image, tokens.number, upright=upright, max_pixels=max_pixels)
    else:
        pictures = [open_image(image, upright=upright, frame=frame, max_pixels=max_pixels)]
    shown = pictures[0]
    try:
        views = [view for picture in pictures for view in views_of(picture, tokens)]
        pixels = torch.stack([preprocess(view) for view in views])  # [V, 3, R, R]
        return Pixels(pixels, shown.info.get(REMARK), look(shown) if look else None)
    except Exception as error:  # one odd image must not end the run
        name = "an image" if isinstance(image, bytes | Image.Image) or hasattr(image, "read") else str(image)
        raise ImageError(name, f"cannot be preprocessed ({one_line(error)})") from error


def encode_images(
    encoder: Encoder,
    images: Sequence[ImageSource],
    batch_size: int,
    *,
    upright: bool = True,
    frame: Frame = "first",
    max_pixels: int = MAX_PIXELS,
    look: Callable[[Image.Image], Any] | None = None,
    threads: int = 1,
    turn: AbstractContextManager | None = None,
    tokens: TokenSpec | None = None,
) -> Iterator[EncodedImages]:
    """Decode and encode images, a batch at a time.

    Args:
        images: paths, bytes, open files or Pillow images, N.
        batch_size: images encoded together.
        upright: turn photos as their EXIF orientation says.
        frame: which frame of an animation.
        max_pixels: decode nothing larger.
        look: called with each decoded picture, for example to draw a thumbnail.
        threads: that decode; with more than one, no open file may be given twice.
        turn: held while the encoder computes, for example a lock.
        tokens: which are encoded beside the vectors (default: none).
    Returns:
        the batches in order; each is decoded when it is asked for.
    """
    read = partial(
        _try_to_read,
        encoder.preprocess,
        upright=upright,
        frame=frame,
        max_pixels=max_pixels,
        look=look,
        tokens=tokens,
    )
    with ExitStack() as stack:
        run = stack.enter_context(ThreadPoolExecutor(threads)).map if threads > 1 else map
        for start in range(0, len(images), batch_size):
            found = list(enumerate(run(read, images[start : start + batch_size]), start))
            good = {number: image for number, image in found if isinstance(image, Pixels)}
            given = None
            if good:
                with turn or nullcontext():
                    pixels = [image.pixels for image in good.values()]
                    given = encode_given(encoder, torch.cat(pixels), [len(views) for views in pixels], tokens)
            yield EncodedImages(
                list(good),
                given,
                {number: fault for number, fault in found if isinstance(fault, ImageError)},
                [image.remark for image in good.values() if image.remark],
                [image.look for image in good.values()],
            )


def _try_to_read(preprocess: Preprocess, image: ImageSource, **how: Any) -> Pixels | ImageError:
    """The pixels of an image, or the reason why it has none."""
    try:
        return read_pixels(preprocess, image, **how)
    except ImageError as error:
        return error
