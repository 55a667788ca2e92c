"""Images of every kind become upright 8-bit RGB, and bad ones say why not in one line."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from clipcap.errors import ClipcapError
from clipcap.images.read import MAX_PIXELS, ImageError, MissingImageError, check_image, find_images, open_image
from clipcap.images.ref import ImageRef

GREY = (np.arange(48 * 64).reshape(48, 64) % 256).astype(np.uint8)  # [H, W]


def pixels(source, **options) -> np.ndarray:
    image = open_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def photo() -> Image.Image:
    """A picture that no turn or mirror leaves as it is."""
    red, green = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).astype(np.uint8))


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def animation(colours: list[str]) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), colour) for colour in colours]


def test_paths_bytes_streams_tar_members_and_pillow_images_open_alike(tmp_path):
    path = tmp_path / "a.png"
    photo().save(path)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(path, "a.png")
    with tarfile.open(tmp_path / "shard.tar") as tar:
        member = tar.getmember("a.png")
    ref = ImageRef(tmp_path / "shard.tar", "a.png", member.offset_data, member.size)
    with open(path, "rb") as stream:
        for source in (path, str(path), path.read_bytes(), stream, ref, photo()):
            assert np.array_equal(pixels(source), np.asarray(photo()))
        assert not stream.closed


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotated_photo_equals_the_upright_one(tmp_path, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL.Image.Transpose that the camera applied
    stored = photo().transpose(Image.Transpose(undo[orientation])) if orientation > 1 else photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(photo()))
    assert np.array_equal(pixels(tmp_path / "a.png", upright=False), np.asarray(stored))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_beside_sound_pixels_does_not_lose_the_photo(tmp_path):
    photo().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert pixels(tmp_path / "a.jpg").shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("scale", [256, 257])
def test_a_16_bit_image_equals_its_8_bit_version_within_one(tmp_path, suffix, scale):
    Image.fromarray(GREY.astype(np.uint16) * scale).save(tmp_path / f"a.{suffix}")
    assert np.abs(pixels(tmp_path / f"a.{suffix}") - GREY[..., None]).max() <= 1


def test_floats_beyond_8_bits_are_scaled_as_whole_numbers_are(tmp_path):
    values = GREY.astype(np.int32) * 64  # of 14 bits
    Image.fromarray(values).save(tmp_path / "whole.tif")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    assert np.array_equal(pixels(tmp_path / "float.tif"), pixels(tmp_path / "whole.tif"))


@pytest.mark.parametrize(
    "values",
    [GREY.astype(np.int32) * 257, GREY.astype(np.float32), (GREY / 255).astype(np.float32)],
    ids=["32-bit whole numbers", "floats to 255", "floats to 1"],
)
def test_tiffs_of_other_number_kinds_equal_their_8_bit_version(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.abs(pixels(tmp_path / "a.tif") - GREY[..., None]).max() <= 1


def test_a_16_bit_pgm_and_a_16_bit_rgb_png_equal_their_8_bit_versions():
    header = b"P5 64 48 65535\n"
    assert np.abs(pixels(header + (GREY.astype(">u2") * 257).tobytes()) - GREY[..., None]).max() <= 1
    rgb = np.asarray(photo()).astype(">u2") * 257  # [H, W, 3]
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    assert np.abs(pixels(raw_png(64, 48, rows, depth=16)) - rgb // 257).max() <= 1


def test_nan_in_a_float_tiff_is_black(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif").max() == 0


def test_cmyk_equals_pillows_conversion(tmp_path):
    photo().convert("CMYK").save(tmp_path / "a.jpg")
    assert np.array_equal(pixels(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")))


def test_a_palette_image_equals_its_rgb_conversion(tmp_path):
    photo().quantize(16).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(Image.open(tmp_path / "a.png").convert("RGB")))


def test_transparency_lies_on_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    assert pixels(png_bytes(rgba)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    assert pixels(buffer.getvalue()).tolist() == [[[0, 0, 255], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_give_their_first_or_middle_frame(tmp_path, suffix):
    first, *others = animation(["red", "lime", "blue"])
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others, lossless=True, duration=50)
    assert pixels(tmp_path / f"a.{suffix}")[8, 8].tolist() == [255, 0, 0]
    assert pixels(tmp_path / f"a.{suffix}", frame="middle")[8, 8].tolist() == [0, 255, 0]


def test_the_middle_frame_of_a_still_or_of_a_tiff_with_pages_is_the_first(tmp_path):
    first, *others = animation(["red", "lime", "blue"])
    first.save(tmp_path / "pages.tif", save_all=True, append_images=others)
    first.save(tmp_path / "still.gif")
    for name in ("pages.tif", "still.gif"):
        assert pixels(tmp_path / name, frame="middle")[8, 8].tolist() == [255, 0, 0]


def raw_png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    """An RGB PNG whose header may promise what its rows do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def spoil(path: Path, kind: str) -> Path:
    """Make a bad image file of a kind."""
    photo().save(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no photo\n" * 20)
    elif kind == "postscript":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    elif kind == "bomb":
        path.write_bytes(raw_png(20_000, 20_000, b""))
    elif kind == "just above the limit":
        path.write_bytes(raw_png(10, MAX_PIXELS // 10 + 1, b""))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    return path


REASONS = {
    "truncated": "truncated",
    "empty": "empty (0 bytes)",
    "text": "not an image",
    "postscript": "not an image",
    "bomb": "178,956,970 pixels",
    "just above the limit": "178,956,970 pixels",
    "folder": "is a folder",
    "pipe": "not a regular file",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", REASONS)
def test_bad_images_say_where_and_why_in_one_line(tmp_path, kind):
    path = spoil(tmp_path / "bad.jpg", kind)
    for action in (open_image, check_image):
        with pytest.raises(ImageError) as caught:
            action(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and REASONS[kind] in message and "\n" not in message


def test_the_pixel_limit_holds_whatever_pillow_is_set_to(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="decompression bomb"):
        open_image(raw_png(20_000, 20_000, b""))


def test_a_missing_image_is_told_from_a_bad_one(tmp_path):
    for path in (tmp_path / "none.jpg", ImageRef(tmp_path / "none.tar", "a.jpg", 512, 9)):
        with pytest.raises(MissingImageError, match=r"none.*: no such file"):
            open_image(path)


@pytest.mark.parametrize("name", ["nul\0.jpg", "surrogate\ud800.jpg", "line\nbreak.jpg", "x" * 5000])
def test_names_that_no_file_can_have_give_one_printable_line(tmp_path, name):
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / name)
    assert str(caught.value).isprintable()


def test_image_errors_survive_the_way_out_of_a_worker_process():
    error = pickle.loads(pickle.dumps(MissingImageError("a.jpg", "no such file")))
    assert (str(error), error.where, error.reason) == ("a.jpg: no such file", "a.jpg", "no such file")


def test_pillows_global_settings_stay_as_they_are(tmp_path):
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    open_image(photo())
    with pytest.raises(ImageError):
        open_image(spoil(tmp_path / "a.jpg", "truncated"))
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


@pytest.mark.parametrize("module", ["clipcap.images.read", "clipcap.sources.readers", "clipcap.sources.download"])
def test_each_module_can_be_the_first_one_imported(module):
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


@pytest.fixture
def album(tmp_path) -> Path:
    for name in ("10.jpg", "2.JPG", "sub/1.png", "sub/._1.png", ".hidden/3.jpg", "notes.txt", "a[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_are_searched_to_the_bottom_in_natural_order(album):
    names = [path.relative_to(album).as_posix() for path in find_images([str(album)])]
    assert names == ["2.JPG", "10.jpg", "a[1].jpg", "sub/1.png"]


def test_links_are_followed_but_circles_of_links_end(album):
    (album / "sub" / "up").symlink_to(album)
    (album / "sub" / "again").symlink_to(album / "sub")
    for argument in (str(album), f"{album}/**", f"{album}/**/*"):
        assert len(find_images([argument])) == 4


def test_files_globs_and_folders_keep_the_order_given_and_repeat_nothing(album):
    arguments = [f"{album}/a[1].jpg", f"{album}/*.[jJ]*", f"{album}/su*", f"{album}/**/1.png"]
    assert [path.name for path in find_images(arguments)] == ["a[1].jpg", "2.JPG", "10.jpg", "1.png"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("none.jpg", "no such file"),
        ("*.txt", "no image matches"),
        ("**/x.jpg", "no image"),
        ("empty", "no images in"),
    ],
)
def test_an_argument_that_names_no_image_is_an_error(album, argument, message):
    (album / "empty").mkdir()
    with pytest.raises(ClipcapError, match=message):
        find_images([f"{album}/10.jpg", f"{album}/{argument}"])


def test_real_gifs_and_photos_open(shared):
    for path in find_images([str(shared / "data" / "gifs"), str(shared / "data" / "clipcap_examples")]):
        check_image(path)
        assert open_image(path, frame="middle").mode == "RGB"
