"""Webdataset tars: images and captions side by side in uncompressed tar files, read in place."""

from __future__ import annotations

import glob
import itertools
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from clipcap.errors import ClipcapError
from clipcap.images.folders import natural_key
from clipcap.images.kinds import SIGNATURE_BYTES, image_suffix, is_image_name
from clipcap.images.photos import Photos
from clipcap.images.ref import ImageRef
from clipcap.runtime.text import reason, shown
from clipcap.sources.beside import CAPTION_SUFFIXES, add_pairs, pair
from clipcap.sources.collector import Collector
from clipcap.sources.faults import RowError
from clipcap.sources.names import PHOTO_FOLDERS, split_in
from clipcap.sources.rows import Part, add_table
from clipcap.sources.tables import TABLE_SUFFIXES, read_table

MAX_SHARDS = 1_000_000
MAX_TABLE_BYTES = 256 * 2**20
MAX_NAME_BYTES = 2**20  # of a name and its kin in headers of their own
MAX_CHAINED = 16  # a long name, a long link and pax headers are three
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


def add_tars(collector: Collector, tars: list[Path], prefix: str = "") -> None:
    """Index every tar once: photos take the captions of the texts beside them, or of a table in the tar.

    Nothing is extracted: a record says at which byte of which tar its image lies.
    """
    base = os.path.commonpath([tar.parent for tar in tars])
    splits = {tar: split_in(os.path.relpath(tar, base)) for tar in tars}
    several = len(set(splits.values())) > 1
    totals: Counter[str] = Counter()
    for tar in tars:
        shard = os.path.relpath(tar.with_suffix(""), base)
        own = Part(f"{prefix}{shard}/", splits[tar] if several else None)
        _add_tar(collector, tar, own, totals)
    if totals:
        listed = ", ".join(f"{suffix} {count:,}" for suffix, count in totals.most_common(6))
        collector.note(f"other members of the tars: {listed}")


def _add_tar(collector: Collector, tar: Path, part: Part, others: Counter[str]) -> None:
    members: dict[str, ImageRef] = {}
    twice = 0
    for member in _members(tar):
        name = member.name.removeprefix("./")
        if posixpath.basename(name).startswith("."):  # macOS keeps a ._1.jpg beside 1.jpg
            continue
        twice += name in members and is_image_name(name)
        members.setdefault(name, ImageRef(tar, member.name, member.offset_data, member.size))
    collector.leave_out(twice, "image", f"a second of the same name in {shown(tar)}", "of a name already used")
    photos = {name for name in members if is_image_name(name) or _is_picture(name, members[name])}
    tables = [name for name in members if _is_table(name, members)]
    texts = CAPTION_SUFFIXES
    others.update(
        posixpath.splitext(name)[1].lower() or "no suffix"
        for name in members
        if name not in photos and name not in tables and not name.lower().endswith(texts)
    )
    if tables and add_table_in_tar(collector, members, photos, tables, part):
        return
    pairs = pair(members, photos.__contains__)
    plain = {name: _key(name) for name in pairs.texts}
    keys = Counter(plain.values())
    short = {name: key if keys[key] == 1 else name for name, key in plain.items()}
    by_key = {short[name]: name for name in pairs.texts}
    pairs.texts = {short[name]: found for name, found in pairs.texts.items()}
    add_pairs(collector, pairs, lambda key: members[by_key[key]], members.__getitem__, part)


def photos_in_tars(tars: list[Path]) -> MemberPhotos:
    """The photos in tars, for a table beside them that names them."""
    members: dict[str, ImageRef] = {}
    for tar in tars:
        for member in _members(tar):
            name = member.name.removeprefix("./")
            if is_image_name(name) and not posixpath.basename(name).startswith("."):
                place = ImageRef(tar, member.name, member.offset_data, member.size)
                members.setdefault(name if name not in members else f"{tar.stem}/{name}", place)
    return MemberPhotos(members, set(members), "")


def hold_captions(tar: Path) -> bool:
    """Whether a tar has texts among its members."""
    return any(member.name.lower().endswith(CAPTION_SUFFIXES) for member in _members(tar))


def _key(name: str) -> str:
    """The id of an image: its name without the suffix."""
    return posixpath.splitext(name)[0] if is_image_name(name) else name


def _is_picture(name: str, place: ImageRef) -> bool:
    """Whether a member whose name says nothing begins like an image."""
    if name.lower().endswith((*CAPTION_SUFFIXES, *TABLE_SUFFIXES)) or place.size < SIGNATURE_BYTES:
        return False
    with open(place.path, "rb") as tar:
        tar.seek(place.offset)
        return image_suffix(tar.read(SIGNATURE_BYTES)) is not None


def _is_table(name: str, members: dict[str, ImageRef]) -> bool:
    """Whether a member is a table of captions rather than one photo's caption."""
    stem, suffix = posixpath.splitext(posixpath.basename(name))
    if suffix.lower() not in (".csv", ".tsv", ".jsonl", ".json", ".txt"):
        return False
    return suffix.lower() in (".csv", ".tsv", ".jsonl") or stem.lower() in ("captions", "metadata", "annotations")


def add_table_in_tar(
    collector: Collector, members: dict[str, ImageRef], photos: set[str], tables: list[str], part: Part
) -> bool:
    """Add the captions of the tables in a tar; False where none of them is one of captions."""
    added = False
    for name in tables:
        if members[name].size > MAX_TABLE_BYTES:
            raise ClipcapError(f"{shown(members[name])}: a table of {members[name].size:,} bytes: unpack the tar")
        inside = MemberPhotos(members, photos, posixpath.dirname(name))
        try:
            table = read_table(members[name], collector.faults)
            add_table(collector, table, inside, part=part)
        except ClipcapError:
            continue
        collector.note_photos(inside)
        added = True
    return added


class MemberPhotos(Photos):
    """Finds photos among the members of a tar, by the rule for folders."""

    def __init__(self, members: dict[str, ImageRef], photos: set[str], folder: str):
        super().__init__([folder, *(posixpath.join(folder, name) for name in PHOTO_FOLDERS)])
        self._members, self._photos = members, photos

    def place(self, *names: str) -> ImageRef:
        """Where the member begins; raises what `find` raises, and a RowError if there is no such member."""
        found = posixpath.normpath(str(self.find(*names)))
        if found not in self._members:
            raise RowError(
                f"'{shown(names[0])}' is not a member of the tar", "an image that is not a member of the tar"
            )
        return self._members[found]

    def __len__(self) -> int:
        return len(self._photos)

    def _names(self, folder: str) -> frozenset[str]:
        folder = posixpath.normpath(folder) if folder else ""
        if folder not in self._listed:
            inside = (posixpath.split(name) for name in self._photos)
            self._listed[folder] = frozenset(leaf for parent, leaf in inside if parent == folder.removeprefix("."))
        return self._listed[folder]

    def _below(self, base: str) -> Iterator[str]:
        return (
            posixpath.relpath(name, base or ".") for name in self._photos if not base or name.startswith(f"{base}/")
        )


class _Member(tarfile.TarInfo):
    """A safe header: tarfile reads names of any length, back where a size is negative, and a level deeper for each
    header that belongs to the next one."""

    chained: ClassVar[int] = 0  # headers in a row that belong to the next one

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header.

        Raises:
            tarfile.InvalidHeaderError: its size is negative, or that of a name no file has, or too many belong to it.
        """
        header = super().frombuf(buf, encoding, errors)
        named = header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        cls.chained = cls.chained + 1 if named else 0
        if cls.chained > MAX_CHAINED:
            raise tarfile.InvalidHeaderError(  # pyright: ignore[reportAttributeAccessIssue]  # public, not in typeshed
                f"more than {MAX_CHAINED} headers for one file"
            )
        if header.size < 0 or (named and header.size > MAX_NAME_BYTES):
            raise tarfile.InvalidHeaderError(  # pyright: ignore[reportAttributeAccessIssue]  # public, not in typeshed
                f"a size of {header.size:,}"
            )
        return header


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar."""
    _refuse_compressed(path)
    try:
        with tarfile.open(path, "r:", tarinfo=type("Member", (_Member,), {})) as tar:  # its own count
            before = -1
            while (member := tar.next()) is not None:
                if not before < tar.offset:  # a header may lead back to an earlier one, for ever
                    raise tarfile.ReadError(f"bad header at byte {member.offset:,}")
                before = tar.offset
                cast(Any, tar).members.clear()  # it would keep all that it has seen, a kilobyte each
                if member.isreg() and not member.issparse():
                    yield member
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
