"""Webdataset tars: images and captions side by side in uncompressed tar files, read in place."""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import is_image_name, natural_key
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import reason, shown
from clipcap.sources.collector import Collector, caption_lines, caption_texts
from clipcap.sources.textfiles import decode_lines, parse_json

MAX_SHARDS = 1_000_000
MAX_TEXT_BYTES = 16 * 2**20  # a caption file beyond this is a mistake or an attack
MAX_NAME_BYTES = 2**20  # of a name and its kin in headers of their own
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


def is_tar_pattern(path: str) -> bool:
    """Whether a path names tars: one file, a brace pattern (`{00000..00031}.tar`) or a glob."""
    return path.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))


def expand_braces(pattern: str) -> list[str]:
    """`{00..02}.tar` -> 00.tar, 01.tar, 02.tar; `{a,b}` -> a, b; several braces multiply."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    span = _RANGE.fullmatch(match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < MAX_SHARDS:
            raise ClipcapError(f"{shown(pattern)}: the range {{{match[1]}}} is empty or beyond {MAX_SHARDS:,} tars")
        width = len(span[1])
        values = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        values = match[1].split(",")
    ends = expand_braces(pattern[match.end() :])
    if len(values) * len(ends) > MAX_SHARDS:
        raise ClipcapError(f"{shown(pattern)}: more than {MAX_SHARDS:,} tars")
    return [pattern[: match.start()] + value + end for value, end in itertools.product(values, ends)]


def find_tars(pattern: str) -> list[Path]:
    """The tars a pattern names, in natural order.

    Raises:
        ClipcapError: one of them is not there, or a glob matches nothing.
    """
    found: list[str] = []
    for path in [pattern] if os.path.exists(pattern) else expand_braces(pattern):
        matches = [path] if os.path.isfile(path) else glob.glob(path)
        if not matches:
            raise ClipcapError(f"{shown(path)}: no such tar" + (f" (of {shown(pattern)})" if path != pattern else ""))
        found += matches
    return [Path(path) for path in sorted(set(found), key=natural_key)]


def add_tars(collector: Collector, tars: list[Path]) -> None:
    """Index every tar once: `key.jpg` gets the captions of `key.txt` (one a line) or of `key.json`.

    Nothing is extracted: a record says at which byte of which tar its image lies.
    """
    base = os.path.commonpath([tar.parent for tar in tars])
    without_caption = 0
    for tar in tars:
        shard = os.path.relpath(tar.with_suffix(""), base)
        images, captions = _index(tar)
        for key, image in images.items():
            if key in captions:
                collector.add(f"{shard}/{key}", image, captions[key])
            without_caption += key not in captions
    collector.note_without_caption(without_caption, "image", "no .txt or .json with a caption")


def _index(path: Path) -> tuple[dict[str, ImageRef], dict[str, list[str]]]:
    """(images, captions) of a tar by key, the member's name up to the first dot of its last part."""
    images: dict[str, ImageRef] = {}
    texts: dict[str, list[str]] = {}
    objects: dict[str, list[str]] = {}
    for tar, member in _members(path):
        folder, leaf = os.path.split(member.name)
        key, _, suffix = leaf.partition(".")
        key = f"{folder}/{key}" if folder else key
        where = path / member.name
        if is_image_name("." + suffix):
            images.setdefault(key, ImageRef(path, member.name, member.offset_data, member.size))
        elif suffix.lower() == "txt":
            texts[key] = caption_lines(_text(tar, member, where))
        elif suffix.lower() == "json":
            data = parse_json(_text(tar, member, where), shown(where))
            if isinstance(data, dict) and "caption" in data:
                objects[key] = caption_texts(data["caption"], shown(where))
    return images, {**objects, **texts}


class _Member(tarfile.TarInfo):
    """A header with a size that is safe: tarfile reads names of any length, and back where one is negative."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        """Parse a header.

        Raises:
            tarfile.InvalidHeaderError: its size is negative, or that of a name no file has.
        """
        header = super().frombuf(buf, encoding, errors)
        named = header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if header.size < 0 or (named and header.size > MAX_NAME_BYTES):
            raise tarfile.InvalidHeaderError(f"a size of {header.size:,}")
        return header


def _members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The plain files in a tar."""
    _refuse_compressed(path)
    try:
        with tarfile.open(path, "r:", tarinfo=_Member) as tar:
            before = -1
            while (member := tar.next()) is not None:
                if not before < tar.offset:  # a header may lead back to an earlier one, for ever
                    raise tarfile.ReadError(f"bad header at byte {member.offset:,}")
                before = tar.offset
                tar.members.clear()  # it would keep all that it has seen, a kilobyte each
                if member.isreg() and not member.issparse():
                    yield tar, member
            _require_end(tar)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise ClipcapError(
            f"{shown(path)}: damaged tar, or none ({reason(error)}): make or download it again"
        ) from error


def _refuse_compressed(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ClipcapError(f"{shown(path)}: cannot be read ({reason(error)})") from error
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            raise ClipcapError(
                f"{shown(path)}: compressed tars cannot be read in place: decompress it first ({command} FILE)"
            )


def _require_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end of the tar: look whether the end is really there."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"bad header at byte {tar.offset:,}")


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo, where: Path) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise ClipcapError(f"{shown(where)}: {member.size:,} bytes are no caption")
    try:
        return "".join(decode_lines(tar.extractfile(member), where))
    except tarfile.TarError as error:
        raise ClipcapError(f"{shown(where)}: the tar ends within it: make or download the tar again") from error
