"""Every kind of picture is found in folders and shown, or named with what to do about it."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from support.photos import encoded, picture

from clipcap.images.kinds import HINTS, IMAGE_SUFFIXES, SUFFIXES
from clipcap.images.read import REMARK, ImageError, check_image, eight_bit, find_images, open_image

RAMP = np.arange(30 * 40).reshape(30, 40)  # [H, W], 0 to 1199
KINDS = sorted(kind for kind in SUFFIXES if kind in Image.registered_extensions().values() or Image.init())


def writable(kind: str) -> bool:
    Image.init()
    return kind in Image.SAVE and kind in Image.OPEN


@pytest.mark.parametrize("kind", [kind for kind in KINDS if writable(kind)])
def test_whatever_kind_is_read_is_found_in_folders_by_all_its_suffixes(tmp_path, kind):
    mode = {"XBM": "1", "PPM": "RGB"}.get(kind, "RGB")
    image = picture().resize((32, 32)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    for suffix in SUFFIXES[kind]:
        if suffix not in (".pfm",):
            (tmp_path / f"a{suffix.upper()}").write_bytes(buffer.getvalue())
    found = find_images([str(tmp_path)])
    assert len(found) == len(SUFFIXES[kind]) - (".pfm" in SUFFIXES[kind])
    for path in found:
        assert open_image(path).mode == "RGB"
        check_image(path)


def test_a_picture_without_a_suffix_is_found_by_its_first_bytes(tmp_path):
    (tmp_path / "photo").write_bytes(encoded())
    (tmp_path / "notes").write_text("BMW and other words")
    assert [path.name for path in find_images([str(tmp_path)])] == ["photo"]


def tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


DEEP = {
    "10 bits": (RAMP % 1024).astype(np.uint16),
    "12 bits": (RAMP * 3).astype(np.uint16),
    "14 bits": (RAMP * 13).astype(np.uint16),
    "16 bits": (RAMP * 54).astype(np.uint16),
    "8 bits in 16": (RAMP % 256).astype(np.uint16),
    "labels 0 to 5": (RAMP % 6).astype(np.uint16),
    "24 bits": (RAMP * 13_000).astype(np.int32),
    "negative": (RAMP - 1000).astype(np.int32),
    "floats to 1": (RAMP / 1200).astype(np.float32),
    "floats to 0.02": (RAMP / 60_000).astype(np.float32),
    "floats to a million": (RAMP * 1000).astype(np.float32),
    "floats from -3": (RAMP / 200 - 3).astype(np.float32),
}


@pytest.mark.parametrize("depth", DEEP)
def test_pictures_of_any_depth_and_range_are_visible_and_that_is_remarked(depth):
    values = DEEP[depth]
    image = open_image(tiff(values))
    shown = np.asarray(image)[..., 0].astype(int)  # [H, W]
    assert shown.max() >= 150 and shown.min() <= 20
    order = np.argsort(values, axis=None)
    assert (np.diff(shown.flat[order]) >= 0).all()  # no value is shown darker than a smaller one
    remark = image.info.get(REMARK)
    assert (remark is None) == (depth in ("16 bits", "floats to 1"))
    assert check_image(tiff(values)) == remark


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_picture_of_one_value_is_shown(value):
    grey, _ = eight_bit(np.full((2, 2), value, np.uint16))
    assert grey.shape == (2, 2)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]
)
def test_pictures_of_every_mode_become_rgb(mode):
    image = Image.new(mode, (8, 8))
    assert open_image(image).mode == "RGB"


def png_with(*texts: tuple[bytes, bytes], behind: bool = False) -> bytes:
    """The picture as PNG with these chunks before or behind its pixels."""
    data = encoded(kind="PNG")
    place = data.index(b"IEND") - 4 if behind else data.index(b"IDAT") - 4
    chunks = b"".join(
        len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        for kind, content in texts
    )
    return data[:place] + chunks + data[place:]


HUGE = b"workflow\0\0" + zlib.compress(b"x" * 3_000_000)
METADATA = {
    "a text that is too long": (b"zTXt", HUGE),
    "an international one": (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
    "a profile that is too long": (b"iCCP", HUGE),
    "an unknown compression": (b"zTXt", b"workflow\0\7abc"),
    "a text of many megabytes": (b"tEXt", b"workflow\0" + b"x" * 70_000_000),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("kind", METADATA)
def test_sound_pixels_beside_absurd_metadata_are_read(kind, behind):
    data = png_with(METADATA[kind], behind=behind)
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(picture()))
    check_image(data)


def test_a_png_with_texts_still_says_that_it_is_cut_off(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 1000)
    noise = Image.effect_noise((200, 200), 90)
    noise.save(tmp_path / "a.png", pnginfo=info)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-4000])
    with pytest.raises(ImageError):
        check_image(tmp_path / "a.png")


UNREAD = {
    "a.HEIC": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        r"pip install pillow-heif.*magick 'a\.HEIC' 'a\.jpg'",
    ),
    "a.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "pip install pillow-heif"),
    "b.heic": (b"Dear Sir or Madam" + bytes(99), "not an image, though its name ends in .heic"),
    "a.CR2": (b"\x49\x49\x2a\x00junk" + bytes(99), "a camera's raw file is not read: convert it"),
    "a.jxl": (b"\xff\x0a" + bytes(99), "JPEG XL is not read"),
    "a.svg": (b"<?xml version='1.0'?><svg xmlns='x'></svg>", "SVG is not read"),
    "b.jpg": (b"<!DOCTYPE html><html>404</html>", "a page of HTML: the download of it failed"),
    "c.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer.*git lfs pull"),
    "d.jpg": (b"\0\0\0\x18ftypmp42" + bytes(99), "a video, not an image"),
    "e.jpg": (b"%PDF-1.4" + bytes(99), "a PDF, not an image"),
    "f.png": (b"PK\x03\x04" + bytes(99), "a zip, not an image"),
    "h.jpg": (b'{"error": "not found"}' + bytes(99), "not an image but JSON, most likely a server's answer"),
    "i.jpg": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "not an image but XML"),
    "j.jpg": (bytes(99), "not an image but zeros: a copy or a download that was cut off"),
    "k.jpg": (
        base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(99)),
        "the base64 of a picture, not the picture: decode it",
    ),
    "a.dcm": (bytes(128) + b"DICM", "a DICOM file is not read: convert it"),
    "g.png": (b"no picture at all" + bytes(99), "not an image .clipcap reads JPEG"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # an import of it raises ImportError
    content, message = UNREAD[name]
    (tmp_path / name).write_bytes(content)
    assert [path.name for path in find_images([str(tmp_path)])] == [name]
    with pytest.raises(ImageError, match=message):
        open_image(tmp_path / name)


def test_hints_are_for_kinds_that_folders_show():
    assert set(HINTS) <= set(IMAGE_SUFFIXES)


def test_heic_is_read_where_its_extra_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    picture().resize((64, 64)).save(tmp_path / "a.heic")
    (tmp_path / "b.HEIC").write_bytes((tmp_path / "a.heic").read_bytes()[:300])
    shown = np.asarray(open_image(tmp_path / "a.heic")).astype(int)
    assert np.abs(shown - np.asarray(picture().resize((64, 64)))).mean() < 12
    with pytest.raises(ImageError, match="damaged HEIC"):
        open_image(tmp_path / "b.HEIC")


def test_large_pictures_and_odd_ones_bring_no_warning_of_a_library(tmp_path):
    Image.new("1", (9600, 9600)).save(tmp_path / "large.png")
    palette = Image.new("P", (8, 8))
    palette.save(tmp_path / "palette.png", transparency=bytes(range(200)))
    picture().save(tmp_path / "exif.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    code = (
        "import sys; from clipcap.images.read import open_image, find_images\n"
        "for path in find_images(sys.argv[1:]): open_image(path)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout == ""
