"""Any image file as an upright 8-bit RGB picture, or one line that says why not."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from clipcap.errors import ClipcapError
from clipcap.images.folders import is_image_name, natural_key, walk
from clipcap.images.memory import in_turn, middle_frame
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import reason, shown

ImageSource = str | Path | bytes | BinaryIO | ImageRef | Image.Image

# Where Pillow itself refuses to decode; said here so that the limit holds whatever Pillow is set to.
MAX_PIXELS = 178_956_970
# Pillow reads more, but some of its readers start other programs (EPS runs Ghostscript) or are no photos.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")  # further pages of a TIFF or MPO are not later moments

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ClipcapError):
    """An image that cannot be used: where it is, and the reason."""

    def __init__(self, where: str, reason: str):
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class MissingImageError(ImageError):
    """An image that is not where it ought to be."""


def open_image(
    source: ImageSource,
    *,
    upright: bool = True,
    frame: Literal["first", "middle"] = "first",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Decode an image to 8-bit RGB.

    Args:
        source: path, bytes, binary stream, place in a tar, or a Pillow image (the frame it shows is taken).
        upright: turn the photo as its EXIF orientation says.
        frame: which frame of an animation.
        max_pixels: decode nothing larger.
    Raises:
        MissingImageError: there is no such file.
        ImageError: it is no image, damaged, or larger than `max_pixels`.
    """
    with _opened(source, max_pixels) as image:
        if frame == "middle" and not isinstance(source, Image.Image) and image.format in ANIMATIONS:
            image.seek(middle_frame(image))
        image.load()
        turn = _UPRIGHT.get(_orientation(image)) if upright else None  # before the EXIF data is lost
        rgb = _to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def check_image(source: str | Path | bytes | ImageRef) -> None:
    """Raise what `open_image` would, reading every byte but decoding JPEGs at an eighth of their size."""
    with _opened(source) as image:
        image.draft("RGB", (1, 1))
        image.load()


@contextmanager
def _opened(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image with only its header read; whatever fails inside the `with` becomes an ImageError."""
    where = _name(source)
    try:
        with _stream(source) as stream:
            image = stream if isinstance(stream, Image.Image) else Image.open(stream, formats=_formats())
            if image.width * image.height > max_pixels:
                raise ImageError(where, _too_large(max_pixels))
            with in_turn(image.width * image.height):
                yield image
    except ClipcapError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingImageError(where, "no such file") from error
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything
        raise ImageError(where, _why(error)) from error


def _name(source: ImageSource) -> str:
    if isinstance(source, (str, Path, ImageRef)):
        return shown(source)
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return shown(name) if name else f"image ({type(source).__name__})"


def _stream(source: ImageSource) -> BinaryIO | nullcontext:
    """`source` as something to read from; what we open is closed, what the caller opened is not."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, (str, Path, ImageRef)):
        return nullcontext(source)
    ref = source if isinstance(source, ImageRef) else ImageRef(Path(source))
    mode = os.stat(ref.path).st_mode
    if stat.S_ISDIR(mode):
        raise ImageError(shown(ref), "is a folder, not an image")
    if not stat.S_ISREG(mode):  # reading a pipe or a device might never end
        raise ImageError(shown(ref), "is not a regular file")
    stream = ref.open()
    if not stream.read(1):
        stream.close()
        raise ImageError(shown(ref), "the file is empty (0 bytes)")
    stream.seek(0)
    return stream


@cache
def _formats() -> list[str]:
    """FORMATS that this build of Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _why(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(MAX_PIXELS)
    if isinstance(error, UnidentifiedImageError):
        return f"not an image (kinds that are read: {', '.join(_formats())})"
    return f"cannot be read ({reason(error)})"


def _too_large(max_pixels: int) -> str:
    return f"more than {max_pixels:,} pixels (a decompression bomb?): make it smaller"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data beside sound pixels: the photo counts
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bit(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits, scaled; Pillow's own conversion cuts all of them off at 255.

    Whole numbers count as 16-bit. What white is in a float image is read off its largest value.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)  # [H, W]
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    largest = values.max()
    white = next((scale for scale in scales if largest <= scale), largest)
    return Image.fromarray(np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8))


def find_images(paths: Sequence[str]) -> list[Path]:
    """The images that files, globs and folders name, each once.

    Arguments keep their order; within a folder (searched to the bottom, links followed, each folder entered
    once) or a glob the order is natural: 2.jpg before 10.jpg.

    Raises:
        ClipcapError: an argument names nothing, or a folder without images.
    """
    return list(dict.fromkeys(image for path in paths for image in _images_of(str(path))))


def _images_of(path: str) -> list[Path]:
    if os.path.isdir(path):
        found = _images_below(Path(path))
        if not found:
            raise ClipcapError(f"{shown(path)}: no images in this folder (looked for .jpg, .png, .webp, .gif, ...)")
        return found
    if os.path.exists(path):
        return [Path(path)]
    if not glob.has_magic(path):
        raise ClipcapError(f"{shown(path)}: no such file or folder")
    found = _matching(path)
    if not found:
        raise ClipcapError(f"{shown(path)}: no image matches")
    return found


def _images_below(folder: Path) -> list[Path]:
    return [path for path in walk(folder) if is_image_name(path.name)]


def _matching(pattern: str) -> list[Path]:
    """Images of a glob. `**` is walked here: Python's glob goes round in circles of links."""
    head, *deep = re.split(r"(?:^|/)\*\*(?:/|$)", pattern, maxsplit=1)
    if deep:
        root = head or ("/" if pattern.startswith("/") else ".")
        below = [path for folder in _folders(root) for path in walk(folder) if path.match(deep[0] or "*")]
        return [path for path in below if is_image_name(path.name)]
    found: list[Path] = []
    for match in map(Path, sorted(glob.glob(pattern), key=natural_key)):
        found += _images_below(match) if match.is_dir() else [match] * is_image_name(match.name)
    return found


def _folders(pattern: str) -> list[Path]:
    return [Path(match) for match in sorted(glob.glob(pattern), key=natural_key) if os.path.isdir(match)]
