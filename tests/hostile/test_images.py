"""Pictures of every bad and every odd kind, through `parse` and `predict`: left out in one line, or read right."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.road import picture, run, save_captioner, write_captions

from clipcap.features.files import read_features


def png(width: int, height: int, *more: tuple[bytes, bytes], kind: bytes = b"\x08\x02\0\0\0") -> bytes:
    """A PNG whose header claims a size, and which holds next to no pixels."""
    header, pixels = struct.pack(">II", width, height) + kind, zlib.compress(b"\0" * 99)
    chunks = [(b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


JPEG = encoded(picture(1, (64, 48)), "JPEG")
GIF = encoded(picture(1, (32, 32)), "GIF", save_all=True, append_images=[picture(2, (32, 32))])

BAD: dict[str, bytes] = {
    "zero bytes": b"",
    "one byte": b"\xff",
    "text": b"this is no photo\n" * 30,
    "HTML": b"<html><script>alert(1)</script></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(touch) system\n",
    "PDF": b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n",
    "ZIP": b"PK\x03\x04" + b"\0" * 60,
    "ELF": b"\x7fELF" + b"\0" * 60,
    "PNG bomb, 65,000 px": png(65_000, 65_000),
    "PNG bomb, 2**31 px": png(2**31 - 1, 2**31 - 1),
    "PNG of no width": png(0, 10),
    "PNG with a compressed text of 50 MB": png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
    "PNG without pixels": png(500, 500),
    "PNG of an unknown kind": png(8, 8, kind=b"\x63\x63\0\0\0"),
    "GIF bomb": b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\x80\0\0" + b"\0" * 6 + b"," + b"\0" * 20,
    "BMP bomb": b"BM" + struct.pack("<IHHIIiiHH6I", 99, 0, 0, 54, 40, 65_000, 65_000, 1, 24, *[0] * 6),
    "TIFF of nonsense": b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 60,
    "WEBP of nonsense": b"RIFF\xff\xff\xff\x7fWEBPVP8 " + b"\xff" * 60,
    "PPM bomb": b"P6 65000 65000 255\n" + b"\0" * 60,
    "PPM of text": b"P6 x y z\n",
    "AVIF of nonsense": b"\0\0\0\x20ftypavif" + b"\0" * 60,
    "JPEG 2000 of nonsense": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\xff" * 60,
    **{f"JPEG cut to {2**k} bytes": JPEG[: 2**k] for k in range(1, 10)},
    **{f"GIF cut to {2**k} bytes": GIF[: 2**k] for k in range(1, 9)},
}  # fmt: skip


def turned(tag: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded(picture(1), "JPEG", exif=exif)


def transparent_palette() -> bytes:
    return encoded(picture(1).quantize(8), "PNG", transparency=0)


ODD: dict[str, bytes] = {
    "CMYK": encoded(picture(1).convert("CMYK"), "JPEG"),
    "16 bits": encoded(Image.fromarray((np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)), "PNG"),
    "palette with transparency": transparent_palette(),
    "one bit": encoded(picture(1).convert("1"), "PNG"),
    "grey with alpha": encoded(picture(1).convert("LA"), "PNG"),
    "animated GIF": GIF,
    "animated WEBP": encoded(picture(1), "WEBP", save_all=True, append_images=[picture(2)]),
    "animated PNG": encoded(picture(1), "PNG", save_all=True, append_images=[picture(2)]),
    "wrong extension": encoded(picture(1), "BMP"),
    "a ribbon of 65,000 px": encoded(Image.new("RGB", (65_000, 1), "red"), "PNG"),
    "one pixel": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
    "float TIFF": encoded(picture(1).convert("F"), "TIFF"),
    "PNG with text": encoded(picture(1), "PNG") + b"<script>",
    **{f"EXIF rotation {tag}": turned(tag) for tag in (1, 3, 6, 8, 0, 99)},
    "EXIF of nonsense": encoded(picture(1), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
}
NAMES = (
    "line\nbreak.jpg", "tab\tand\rreturn.jpg", "üñí😀.jpg", "\u202egpj.exe.jpg", "=1+1.jpg", "-rf.jpg", "<b>&.jpg",
    "quote\"'.jpg", "a,b;c.jpg", "%2e%2e%2f.jpg", "$(touch x).jpg", "\x1b[31mred.jpg", "caf\udce9.jpg", " .jpg",
    "x" * 200 + ".jpg",
)  # fmt: skip


@pytest.fixture(scope="module")
def captioner(tmp_path_factory, lm_folder, clip_file):
    return save_captioner(tmp_path_factory.mktemp("c") / "captioner", lm_folder, clip_file)


def album(folder: Path, files: dict[str, bytes]) -> dict[str, str]:
    """Files under plain names, with a captions.csv; returns the name of each kind."""
    folder.mkdir()
    names = {kind: f"{number}.jpg" for number, kind in enumerate(files)}
    for kind, content in files.items():
        (folder / names[kind]).write_bytes(content)
    write_captions(folder, [(name, "a caption") for name in names.values()])
    return names


@pytest.fixture(scope="module")
def parsed(tmp_path_factory, clip_file):
    """Of the bad pictures beside the odd ones: name of each kind, ids that have features, reasons of the others."""
    from clipcap.cli.main import main

    folder = tmp_path_factory.mktemp("album")
    names = album(folder / "set", {**BAD, **ODD})
    words = ["--data_path", folder / "set", "--clip_model_type", clip_file, "--out", folder / "f.pkl"]
    assert main(["parse", "custom", *map(str, words), "--device", "cpu", "--workers", "0", "--max_bad", "1"]) == 0
    with (folder / "f_errors.csv").open(newline="", encoding="utf-8") as file:
        reasons = {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(file)}
    return names, set(read_features(folder / "f.pkl").image_ids), reasons


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_left_out_and_listed_with_a_reason(kind, parsed):
    names, ids, reasons = parsed
    assert names[kind] not in ids
    assert reasons[names[kind]].isprintable() and 5 < len(reasons[names[kind]]) < 400


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_picture_has_features(kind, parsed):
    names, ids, reasons = parsed
    assert names[kind] in ids and names[kind] not in reasons


def test_bad_pictures_cost_a_line_each_when_captioned(captioner, tmp_path, capsys):
    names = album(tmp_path / "set", {**BAD, **ODD})
    words = ("--img", tmp_path / "set", "--device", "cpu", "--max_new_tokens", 3, "--beam")
    status, out, err = run(capsys, "predict", "--load_pt", captioner, *words)
    skipped = [line for line in err if line.startswith("warning: skipped ")]
    assert status == 1 and len(skipped) == len(BAD) and len(out) == len(ODD)
    assert not [line for line in err if "Traceback" in line]
    assert all(sum(f"/{names[kind]}:" in line for line in skipped) == 1 for kind in BAD)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_of_any_kind_is_captioned_and_printed_in_one_line(name, captioner, tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    try:
        (folder / name).write_bytes(JPEG)
        (folder / "cut.jpg").write_bytes(JPEG[:99])
    except OSError as error:
        pytest.skip(f"no such name on this drive: {error}")
    words = ("--img", folder, "--device", "cpu", "--max_new_tokens", 3, "--beam")
    status, out, err = run(capsys, "predict", "--load_pt", captioner, *words, "--out", tmp_path / "c.csv")
    assert status == 1 and not [line for line in err if "Traceback" in line]
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        [row] = csv.DictReader(file)
    assert not row["image"].startswith(("=", "-", "+", "@", "\t", "\r"))
    assert all(line.isprintable() or "\t" in line for line in out)


def test_circles_of_links_end_and_links_out_are_followed_once(captioner, tmp_path, capsys):
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (folder / "nowhere.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    words = ("--img", folder, "--device", "cpu", "--max_new_tokens", 3, "--beam")
    status, out, err = run(capsys, "predict", "--load_pt", captioner, *words)
    assert status == 1 and len(out) == 1
    assert len([line for line in err if line.startswith("warning: skipped ")]) == 4
    assert not [line for line in err if "Traceback" in line]


CLIMBS = ("../a.jpg", "../../../../etc/passwd", "/etc/passwd", "..\\a.jpg", "C:\\a.jpg", "a/../../b.jpg", "\0.jpg")


@pytest.mark.parametrize("source", ["food", "flickr8k", "coco"])
@pytest.mark.parametrize("name", CLIMBS, ids=range(len(CLIMBS)))
def test_names_that_climb_out_of_the_folder_are_refused(source, name, tmp_path, clip_file, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "a.jpg").write_bytes(JPEG)
    written = {
        "food": ("Captions.csv", f",Index,Captions\n0,{name},a dog\n"),
        "flickr8k": ("Flickr8k.token.txt", f"{name}#0\ta dog\n"),
        "coco": ("captions_train2017.json", json.dumps({
            "images": [{"id": 1, "file_name": name}], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}],
        })),
    }  # fmt: skip
    file, content = written[source]
    (folder / file).write_text(content)
    words = ("--data_path", folder, "--clip_model_type", clip_file, "--out", tmp_path / "f.pkl", "--device", "cpu")
    status, _, err = run(capsys, "parse", source, *words)
    assert status == 1 and len(err) == 1 and err[0].startswith("clipcap: error: ")
    assert not (tmp_path / "f.pkl").exists()
