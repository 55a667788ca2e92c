"""Kinds of image files: suffixes, first bytes, and how to convert unsupported kinds."""

from __future__ import annotations

import base64

# Supported kinds, by Pillow's name, with their suffixes. Pillow reads more, but some of its readers start other
# programs (EPS runs Ghostscript), and some kinds are not photos or drawings (weather data, icons of a cursor).
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "PSD": (".psd",),
    "ICO": (".ico",),
    "ICNS": (".icns",),
    "SUN": (".ras",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "HEIF": (".heic", ".heif", ".hif", ".heics"),  # with pillow-heif
}
NO_SIGNATURE = ("TGA",)  # any bytes may pass for one: tried for its own suffixes alone

CONVERT = "convert it"  # in every reason that says how
_CONVERT = CONVERT + ", with ImageMagick for example: magick '{name}' '{stem}.jpg'"
HEIF_HINT = "HEIC is read with pillow-heif installed (pip install pillow-heif); or " + _CONVERT
_RAW_HINT = "a camera's raw file is not read: " + _CONVERT
# Common but unsupported kinds: what to do instead, by suffix.
HINTS = {
    **dict.fromkeys(SUFFIXES["HEIF"], HEIF_HINT),
    **dict.fromkeys(
        ".cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw .crw .nrw .sr2 .srf .3fr .iiq .x3f .kdc .dcr .rwl".split(),
        _RAW_HINT,
    ),
    **dict.fromkeys((".dcm", ".dicom"), "a DICOM file is not read: " + _CONVERT),
    **dict.fromkeys((".jxr", ".wdp", ".hdp"), "JPEG XR is not read: " + _CONVERT),
    ".xcf": "a GIMP file is not read: " + _CONVERT,
    ".jxl": "JPEG XL is not read: " + _CONVERT,
    ".svg": "a drawing in SVG is not read: " + _CONVERT,
    ".eps": "PostScript is not read, as reading it would run it: " + _CONVERT,
    ".exr": "OpenEXR is not read: " + _CONVERT,
    ".hdr": "Radiance HDR is not read: " + _CONVERT,
}
IMAGE_SUFFIXES = tuple(dict.fromkeys((*(suffix for suffixes in SUFFIXES.values() for suffix in suffixes), *HINTS)))

_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"BM", ".bmp"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"\xff\x4f\xff\x51", ".j2k"),
    (b"\xff\x0a", ".jxl"),
    (b"\0\0\0\x0cJXL ", ".jxl"),
)
_FILE_TYPES = {b"heic": ".heic", b"heix": ".heic", b"mif1": ".heic", b"msf1": ".heic", b"hevc": ".heic",
               b"avif": ".avif", b"avis": ".avif", b"crx ": ".cr3"}  # fmt: skip
SIGNATURE_BYTES = 64

# What lies under an image's name without being one, by its first bytes.
_OTHER = (
    (b"version https://git-lfs", "a Git LFS pointer, not the picture: run git lfs pull where it was cloned"),
    (b"%PDF", "a PDF, not an image: export its pages as images"),
    (b"PK\x03\x04", "a zip, not an image: unzip it"),
    (b"\x1f\x8b", "compressed with gzip: run gunzip on it"),
    (b"%!PS", "not an image: PostScript is not read, as reading it would run it"),
    (b"\x1a\x45\xdf\xa3", "a video, not an image: take a frame out of it"),
)
_VIDEO = (b"isom", b"mp41", b"mp42", b"M4V ", b"qt  ", b"iso2", b"iso5", b"avc1", b"3gp4", b"3gp5")


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image, though it may be of a kind that is not read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def image_suffix(head: bytes) -> str | None:
    """The suffix that fits the first bytes of an image file; None if they match no known kind."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:8] == b"ftyp":
        return _FILE_TYPES.get(head[8:12])
    plausible = not head.startswith(b"BM") or head[6:10] == bytes(4)  # two letters alone begin many a text
    return next((suffix for magic, suffix in _SIGNATURES if head.startswith(magic)), None) if plausible else None


def why_heif_unread(name: str) -> str:
    """Why pillow-heif does not read a file, and what to do."""
    return "a damaged HEIC file, or of a kind that is not read: " + _CONVERT.format(
        name=name, stem=name.rpartition(".")[0] or name
    )


def _decoded(head: bytes) -> bytes:
    """What the first bytes of a text are the base64 of; nothing if they are not."""
    try:
        return base64.b64decode(head.rpartition(b",")[2].strip()[:40], validate=True)
    except ValueError:
        return b""


def why_unread(name: str, head: bytes, kinds: str) -> str:
    """Why Pillow does not know a file, and what to do, from its first bytes and its name."""
    stem = name.rpartition(".")[0] or name
    for magic, reason in _OTHER:
        if head.startswith(magic):
            return reason
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "not an image but a page of HTML: the download of it failed"
    if b"<svg" in text:
        return HINTS[".svg"].format(name=name, stem=stem)
    if text.startswith((b"<?xml", b'{"', b"[{")):
        return (
            f"not an image but {'XML' if text[:1] == b'<' else 'JSON'}, most likely a server's answer: fetch it again"
        )
    if image_suffix(_decoded(head)):
        return "the base64 of a picture, not the picture: decode it, with base64 -d for example"
    if head[4:8] == b"ftyp" and head[8:12] in _VIDEO:
        return "a video, not an image: take a frame out of it"
    found = image_suffix(head)
    own = name[name.rfind(".") :].lower() if "." in name else ""
    if own in SUFFIXES["HEIF"] and found is None and head[4:8] != b"ftyp":
        return f"not an image, though its name ends in {own}"
    for suffix in (found, own):
        if suffix in HINTS:
            return HINTS[suffix].format(name=name, stem=stem)
    if found == ".tif":
        return "a TIFF of a kind that is not read: " + _CONVERT.format(name=name, stem=stem)
    if found is not None:
        return f"damaged: it begins as a {found[1:].upper()} file, and cannot be read on: fetch or export it again"
    if not head.strip(b"\0"):
        return "not an image but zeros: a copy or a download that was cut off: fetch it again"
    return f"not an image (clipcap reads {kinds})"
