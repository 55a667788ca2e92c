"""Files that stand in the place of weights: pipes, which would be waited for, and what a download left instead."""

from __future__ import annotations

import io
import os
import stat
from contextlib import nullcontext
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.runtime.places import special_kind
from clipcap.runtime.text import one_line, shown

_BEGINNING = 512  # bytes that tell what a file is
_PAGE = (b"<!doctype", b"<html", b"<?xml")
# First bytes, what such a file is, and what to do.
_OTHERS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself", "fetch it: git lfs pull"),
    (b"\x1f\x8b", "is compressed by gzip", "gunzip it first"),
    (b"\xfd7zXZ", "is compressed by xz", "unxz it first"),
    (b"BZh", "is compressed by bzip2", "bunzip2 it first"),
    (b"7z\xbc\xaf", "is an archive of 7-Zip", "unpack it first"),
    (b"Rar!", "is an archive of RAR", "unpack it first"),
    (b"\x89HDF\r\n", "is weights of Keras (HDF5)", "save them with PyTorch: torch.save of a state dict"),
    (b"\x93NUMPY", "is one array of NumPy", "save all tensors by name: torch.save of a state dict"),
    (b"GGUF", "is a language model of llama.cpp", "pass it as --lm with the ending .gguf"),
)


def check_weights_file(path: Path) -> None:
    """Refuse what is no file of weights by its kind or its first bytes, before it is opened to be read.

    Raises:
        ClipcapError: a pipe, socket or device, a link to nothing, or a file that a download left in place of weights.
    """
    try:
        kind = special_kind(path.stat().st_mode)
        with path.open("rb") if kind is None else nullcontext(io.BytesIO()) as file:
            beginning = file.read(_BEGINNING)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        if path.is_symlink() and isinstance(error, FileNotFoundError):
            reason = f"a link to {shown(os.readlink(path))}, which is not there"
        raise ClipcapError(f"{shown(path)}: cannot be read ({reason}): check the file") from error
    if kind:
        raise ClipcapError(f"{shown(path)}: is {kind}, not a file: pass the file of the weights")
    if other := _other(beginning):
        raise ClipcapError(f"{shown(path)}: {other}")


def check_folder(folder: Path, flag: str) -> None:
    """Refuse a folder of which a file cannot be read to its end, or is a pointer to one that was not fetched.

    Args:
        folder: whose files a library is to read.
        flag: with its value, for the message.
    Raises:
        ClipcapError: names the file.
    """
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise ClipcapError(f"{flag}: cannot be read ({error.strerror or one_line(error)})") from error
    for path in files:
        try:
            found = path.stat()
            small = stat.S_ISREG(found.st_mode) and found.st_size <= _BEGINNING
            beginning = path.read_bytes() if small else b""
        except OSError:  # reading it will say what is wrong, if it is read
            continue
        if kind := special_kind(found.st_mode):
            raise ClipcapError(f"{flag}: {shown(path.name)} in it is {kind}, not a file: remove it")
        if beginning.startswith(_OTHERS[0][0]):
            raise ClipcapError(f"{flag}: {shown(path.name)} in it {_other(beginning)}")


def _other(beginning: bytes) -> str | None:
    """What a file is and what to do with it, by its first bytes; None where it may be weights."""
    for start, what, way in _OTHERS:
        if beginning.startswith(start):
            return f"{what}: {way}"
    if beginning.lstrip()[:9].lower().startswith(_PAGE):
        return "is a web page, as a download that failed leaves one: download it again"
    return None
