"""Any image file as an upright 8-bit RGB picture, or one line that says why not."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from clipcap.errors import ClipcapError
from clipcap.images.folders import natural_key, walk
from clipcap.images.kinds import (
    NO_SIGNATURE,
    SIGNATURE_BYTES,
    SUFFIXES,
    image_suffix,
    is_image_name,
    why_heif_unread,
    why_unread,
)
from clipcap.images.memory import MOST_FRAME_PIXELS, in_turn, middle_frame
from clipcap.images.png import without_png_metadata
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import reason, shown

ImageSource = str | Path | bytes | BinaryIO | ImageRef | Image.Image

# Where Pillow itself refuses to decode; set here so that the limit does not depend on Pillow's settings.
MAX_PIXELS = 178_956_970
FORMATS = (*SUFFIXES, "DIB", "MPO")
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")  # further pages of a TIFF or MPO are not later moments

REMARK = "clipcap_remark"  # key of `Image.info` in what `open_image` returns

_VISIBLE = 16  # a picture whose brightest point is darker than 1/16 of white is taken for one of another range
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # first bytes
_PIL = r"PIL\."
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
    """An unusable image: its path, and the reason."""

    def __init__(self, where: str, reason: str):
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class MissingImageError(ImageError):
    """A missing image file."""


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
    Returns:
        the picture; `info[REMARK]` says what was done to show it, where its numbers were no 8-bit colours.
    Raises:
        MissingImageError: the file does not exist.
        ImageError: not an image, damaged, or larger than `max_pixels`.
    """
    with _opened(source, max_pixels) as image:
        if frame == "middle" and not isinstance(source, Image.Image) and image.format in ANIMATIONS:
            image.seek(middle_frame(image))
        image.load()
        turn = _UPRIGHT.get(_orientation(image)) if upright else None  # before the EXIF data is lost
        rgb, remark = _to_rgb(image)
        shown_upright = rgb if turn is None else rgb.transpose(turn)
        if remark:
            shown_upright.info[REMARK] = remark
        return shown_upright


def open_frames(
    source: ImageSource, count: int, *, upright: bool = True, max_pixels: int = MAX_PIXELS
) -> list[Image.Image]:
    """Decode frames of an animation, or of a folder with a picture for each, spread evenly over it.

    Args:
        source: as `open_image` takes it, or a folder.
        count: of the frames; fewer where there are fewer.
        upright, max_pixels: as `open_image` takes them.
    Raises:
        MissingImageError: the file does not exist.
        ImageError: a folder without pictures, or as `open_image` raises it.
    """
    folder = source.path if isinstance(source, ImageRef) and source.data is None and not source.member else source
    if isinstance(folder, (str, Path)) and os.path.isdir(folder):
        pictures = sorted(filter(is_image_file, Path(folder).iterdir()), key=lambda path: natural_key(path.name))
        if not pictures:
            raise ImageError(shown(source), "is a folder without pictures")
        chosen = [pictures[i] for i in _spread(len(pictures), count)]
        return [open_image(path, upright=upright, max_pixels=max_pixels) for path in chosen]
    with _opened(source, max_pixels) as image:
        moving = image.format in ANIMATIONS and not isinstance(source, Image.Image)
        reachable = max(1, MOST_FRAME_PIXELS // max(1, image.width * image.height))
        last = min(getattr(image, "n_frames", 1), reachable) if moving else 1
        turn, found = _UPRIGHT.get(_orientation(image)) if upright else None, []
        for number in _spread(last, count):
            image.seek(number)
            image.load()
            rgb, remark = _to_rgb(image)
            found.append(rgb if turn is None else rgb.transpose(turn))
            if remark:
                found[-1].info[REMARK] = remark
        return found


def _spread(there: int, count: int) -> list[int]:
    """`count` numbers below `there`, each in the middle of its share of them; all where they are fewer."""
    if there <= count:
        return list(range(there))
    return [(2 * i + 1) * there // (2 * count) for i in range(count)]


def check_image(source: str | Path | bytes | ImageRef) -> str | None:
    """Raise what `open_image` would, reading every byte but decoding JPEGs at an eighth of their size.

    Returns:
        what `open_image` would remark.
    """
    with _opened(source) as image:
        image.draft("RGB", (1, 1))
        image.load()
        return _to_rgb(image)[1] if _is_deep(image) else None


@contextmanager
def _opened(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image with only its header read; whatever fails inside the `with` becomes an ImageError."""
    where = _name(source)
    _silence_pillow()
    try:
        with _stream(source) as stream:
            image = stream if isinstance(stream, Image.Image) else _identified(stream, where)
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


def _silence_pillow() -> None:
    """Pillow warns of large pictures, odd palettes and damaged EXIF data: what matters of it is reported here.

    The filter is set again where it is gone, as test runners and `warnings.catch_warnings` take filters away.
    """
    if not warnings.filters or getattr(warnings.filters[0][3], "pattern", None) != _PIL:
        warnings.filterwarnings("ignore", module=_PIL)


def _identified(stream: BinaryIO, where: str) -> Image.Image:
    """The image in a stream, its header read.

    Raises:
        ImageError: Pillow does not know it; the reason is read off its first bytes.
    """
    try:
        stream.seek(0)
        head = stream.read(8)
        stream.seek(0)
        if head.startswith(_JPEG):  # the others' readers need not be imported
            Image.preinit()
            return Image.open(stream, formats=["JPEG"])
        if head == _PNG:
            stream = without_png_metadata(stream)
        stream.seek(0)
        own = [kind for kind in NO_SIGNATURE if where.lower().endswith(SUFFIXES[kind])]
        return Image.open(stream, formats=[kind for kind in _formats() if kind not in NO_SIGNATURE] + own)
    except UnidentifiedImageError as error:
        if (heif := _heif(stream, where)) is not None:
            return heif
        stream.seek(0)
        name, head = re.split(r"[/\\]", where)[-1], stream.read(SIGNATURE_BYTES)
        raise ImageError(where, why_unread(name, head, ", ".join(_formats()))) from error


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
    if ref.data is not None:
        return ref.open()  # at hand
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


def _heif(stream: BinaryIO, where: str) -> Image.Image | None:
    """The image of a HEIC file, its header read; None for other files, and without pillow-heif.

    Raises:
        ImageError: it is damaged.
    """
    stream.seek(0)
    if image_suffix(stream.read(SIGNATURE_BYTES)) not in SUFFIXES["HEIF"]:
        return None
    try:
        import pillow_heif
    except ImportError:
        return None
    stream.seek(0)
    try:
        return pillow_heif.HeifImageFile(stream)
    except (SyntaxError, ValueError, EOFError, RuntimeError) as error:
        raise ImageError(where, why_heif_unread(re.split(r"[/\\]", where)[-1])) from error


def _why(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(MAX_PIXELS)
    return f"cannot be read ({reason(error)})"


def _too_large(max_pixels: int) -> str:
    return f"more than {max_pixels:,} pixels (a decompression bomb?): make it smaller"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data beside sound pixels: the photo counts
        return 1


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """(8-bit RGB, what had to be done to show it)."""
    if _is_deep(image):
        grey, remark = eight_bit(np.asarray(image))
        return Image.fromarray(grey).convert("RGB"), remark
    if image.mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")  # None in place only
        return cast(Image.Image, rgb), None
    if image.mode in ("La", "RGBa"):  # colours multiplied by their opacity
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB"), None
    return image.convert("RGB"), None


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def eight_bit(values: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Grey values of more than 8 bits, scaled so that something is to be seen.

    Pillow's own conversion cuts all of them off at 255. No file says reliably which value is white: it is the
    smallest of the usual depths (8, 10, 12, 14, 16 bits; floats to 1 too) that holds the largest value, or the
    largest value itself where the picture would still be all but black. Negative values make the smallest one black.

    Args:
        values: [H, W] whole numbers or floats.
    Returns:
        ([H, W] uint8, which values are black and white where they are not 0 and 16 bits, 255 or 1).
    """
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)  # [H, W]
    floats = values.dtype.kind == "f"
    low, high = float(min(numbers.min(), 0.0)), float(numbers.max())
    scales = (*[1.0] * floats, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
    white = next((scale for scale in scales if high <= scale), high)
    if low < 0 or high * _VISIBLE < white:
        white = high if high > low else low + 1
    grey = np.clip(np.rint((numbers - low) * (255 / (white - low))), 0, 255).astype(np.uint8)
    usual = low == 0 and white in ((1.0, 255.0) if floats else (65535.0,))
    black = f"{low:g} as black and " if low < 0 else ""
    return grey, None if usual else f"of more than 8 bits, shown with {black}{white:g} as white"


def find_images(paths: Sequence[str]) -> list[Path]:
    """The images that files, globs and folders name, each once.

    Arguments keep their order; within a folder (searched to the bottom, links followed, each folder entered
    once) or a glob the order is natural: 2.jpg before 10.jpg.

    Raises:
        ClipcapError: an argument names nothing, or a folder without images.
    """
    return list(dict.fromkeys(image for path in paths for image in _images_at(str(path))))


def _images_at(path: str) -> list[Path]:
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
    return [path for path in walk(folder) if is_image_file(path)]


def is_image_file(path: Path) -> bool:
    """Whether a file is called like an image, or has no suffix and begins like one."""
    return is_image_name(path.name) if "." in path.name else bool(_suffix_inside(path))


def _suffix_inside(path: Path) -> str | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return image_suffix(file.read(SIGNATURE_BYTES))
    except OSError:
        return None


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
