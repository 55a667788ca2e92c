"""`clipcap features`: what a feature file holds, whether it is sound, and files made of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from clipcap.config import LARGEST_SEED, within
from clipcap.errors import ClipcapError
from clipcap.features import (
    Content,
    FeatureMeta,
    Features,
    check_place,
    check_same_encoder,
    find_faults,
    find_features,
    hashed,
    in_order,
    read_parts,
    rows_held_out,
    split_path,
    write_parts,
)
from clipcap.text import printable

Dtype = Literal["float16", "float32"]
Say = Callable[[str], None]
PART = 100_000  # rows in memory at a time
BLOCK = 8192  # rows converted at a time


@dataclass(frozen=True)
class Survey:
    """What a feature file holds, without its embeddings and texts: 16 bytes per row."""

    path: Path
    meta: FeatureMeta
    dim: int
    dtype: Dtype  # that it would be written in
    ids: np.ndarray  # int64 [N], the image id of each row as a number
    captions: np.ndarray  # int64 [N], how many each row has

    def written(self, path: Path, rows: np.ndarray | slice = slice(None)) -> str:
        """What to say when these rows were written."""
        images, captions = len(np.unique(self.ids[rows])), int(self.captions[rows].sum())
        return f"wrote {path}: {images:,} images, {captions:,} captions"


def survey(path: str | Path, parts: Iterable[Features]) -> Survey:
    """Go once through a feature file."""
    ids, captions = [], []
    for part in parts:
        ids.append(hashed(part.image_ids))
        captions.append(np.bincount(part.caption_rows, minlength=part.num_images))
    dtype = "float16" if part.embeddings.dtype == torch.float16 else "float32"
    return Survey(Path(path), part.meta, part.dim, dtype, np.concatenate(ids), np.concatenate(captions))


def info(path: str | Path) -> str:
    """What a feature file is and holds, a line each."""
    file = find_features(path)
    seen = survey(path, read_parts(path))
    meta, rows = seen.meta, len(seen.ids)
    each = np.bincount(in_order(seen.ids), weights=seen.captions)  # captions of each image
    spread = f"min {each.min():.0f}, mean {each.mean():.2f}, max {each.max():.0f}"
    size = sum(f.stat().st_size for f in (file.rglob("*") if file.is_dir() else [file]) if f.is_file())
    guessed = " (guessed from the width: the file does not say)" * meta.encoder_guessed
    lines = {
        "kind": f"feature {'folder' if file.is_dir() else 'pickle'}, {_bytes(size)}",
        "images": f"{len(each):,}" + f" in {rows:,} rows" * (rows != len(each)),
        "captions": f"{each.sum():,.0f} (per image: {spread})",
        "width": f"{seen.dim}, {meta.dtype or seen.dtype}, {'' if meta.normalized else 'not '}normalised",
        "encoder": (meta.encoder or "not known") + guessed,
        "weights id": meta.encoder_weights_id or "not known",
        "source": meta.source or "not known",
        "written by": f"clipcap {meta.clipcap_version}" if meta.clipcap_version else "not known",
    }
    return "\n".join([str(path), *(f"  {name + ':':12}{printable(value)}" for name, value in lines.items())])


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def verify(path: str | Path, say: Say = print) -> bool:
    """Look through a feature file and say what is wrong, a line for each kind of fault; whether it is sound."""
    findings = find_faults(find_features(path))
    for fault in findings.faults:
        say(f"{path}: {printable(fault)}")
    if findings.repeated:
        say(f"{path}: note: {findings.repeated:,} rows repeat an image, as in files with a row for each caption")
    if not findings.faults:
        say(f"{path}: {findings.images:,} rows, {findings.captions:,} captions, nothing wrong")
    return not findings.faults


def convert(path: str | Path, out: str | Path, dtype: Dtype | None, encoder: str | None, say: Say = print) -> None:
    """Write features anew, as a pickle or a folder.

    Args:
        path: of the features.
        out: NAME.pkl, or a folder.
        dtype: of the numbers; as they are where it is None.
        encoder: name of the encoder, of a file that does not say it.
        say: takes the lines to print.
    """
    check_place(Path(out))
    parts = read_parts(path, encoder)
    seen = survey(path, parts)
    dtype = dtype or seen.dtype
    write_parts(out, _contents(parts, dtype), replace(seen.meta, dtype=dtype))
    say(seen.written(Path(out)))


def split(path: str | Path, train_size: float, seed: int, out: str | Path, say: Say = print) -> None:
    """Write NAME_train and NAME_val for `out` NAME: a share `train_size` of the images, and the rest."""
    if not 0 < train_size < 1:
        raise ClipcapError(f"--train_size is a share between 0 and 1, got {train_size}")
    within("seed", seed, 0, LARGEST_SEED)
    places = {name: split_path(Path(out), name) for name in ("train", "val")}
    for place in places.values():
        check_place(place)
    parts = read_parts(path)
    seen = survey(path, parts)
    share = round(1 - train_size, 9)  # 1 - 0.7 is a little more than 0.3, which can be an image more
    in_val = rows_held_out(in_order(seen.ids), share, seed, seen.path)
    for place, chosen in ((places["train"], ~in_val), (places["val"], in_val)):
        write_parts(place, _contents(_chosen(parts, chosen), seen.dtype), replace(seen.meta, dtype=seen.dtype))
        say(seen.written(place, chosen))


def _chosen(parts: Iterable[Features], chosen: np.ndarray) -> Iterator[Features]:
    """The rows where `chosen`, bool [N], is true."""
    start = 0
    for part in parts:
        yield part.subset_by_row(np.flatnonzero(chosen[start : start + part.num_images]))
        start += part.num_images


def merge(
    paths: Sequence[str | Path], out: str | Path, prefix_ids: bool, encoder: str | None, say: Say = print
) -> None:
    """Write the features of several files as one, in their order.

    Args:
        paths: of the files.
        out: NAME.pkl, or a folder.
        prefix_ids: set each file's name before its image ids, where ids mean different images in different files.
        encoder: name of the encoder, of files that do not say it.
        say: takes the lines to print.
    Raises:
        ClipcapError: files of different encoders, or one image id in two files.
    """
    if len(paths) < 2:
        raise ClipcapError("features merge: give two files or more")
    check_place(Path(out))
    prefixes = _prefixes(paths) if prefix_ids else [""] * len(paths)
    seen = [survey(path, read_parts(path, encoder)) for path in paths]
    meta = _common_meta(seen)
    if not prefix_ids:
        _refuse_shared_ids(seen)
    dtype = "float16" if all(one.dtype == "float16" for one in seen) else "float32"
    contents = (
        content
        for path, prefix in zip(paths, prefixes)
        for content in _contents(read_parts(path, encoder), dtype, prefix)
    )
    write_parts(out, contents, replace(meta, dtype=dtype))
    images = sum(len(np.unique(one.ids)) for one in seen)
    captions = sum(int(one.captions.sum()) for one in seen)
    say(f"wrote {out}: {images:,} images, {captions:,} captions")


def _prefixes(paths: Sequence[str | Path]) -> list[str]:
    names = [Path(path).name.removesuffix(".pkl") for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ClipcapError(f"--prefix_ids: two of the files are called {twice}: rename one")
    return [f"{name}/" for name in names]


def _common_meta(seen: Sequence[Survey]) -> FeatureMeta:
    """What is true of all the files."""
    for one, other in combinations(seen, 2):
        check_same_encoder(
            other.meta, other.dim, None if one.meta.encoder_guessed else one.meta.encoder,
            one.meta.encoder_weights_id, one.dim, other.path, str(one.path),
        )  # fmt: skip
        if one.meta.normalized != other.meta.normalized:
            yes, no = (one.path, other.path) if one.meta.normalized else (other.path, one.path)
            raise ClipcapError(f"{yes}: is normalised, {no} is not: leave one out, or parse its images again")
    says = [bool(one.meta.encoder) and not one.meta.encoder_guessed for one in seen]
    if any(says) and not all(says):
        silent, known = seen[says.index(False)], seen[says.index(True)]
        raise ClipcapError(
            f"{silent.path}: does not say its encoder: if it is that of {known.path}, add "
            f"--clip_model_type {known.meta.encoder}"
        )
    weights = {one.meta.encoder_weights_id for one in seen}
    sources = dict.fromkeys(one.meta.source for one in seen if one.meta.source)
    return replace(
        seen[0].meta,
        encoder_weights_id=weights.pop() if len(weights) == 1 else None,
        source="; ".join(sources) or None,
    )


def _refuse_shared_ids(seen: Sequence[Survey]) -> None:
    before = np.empty(0, np.int64)
    for one in seen:
        shared = np.flatnonzero(np.isin(one.ids, before))
        if len(shared):
            first = _chosen(read_parts(one.path), np.arange(len(one.ids)) == shared[0])
            name = next(part.image_ids[0] for part in first if part.num_images)
            raise ClipcapError(
                f"{one.path}: {len(shared):,} of its rows have an image id that a file before it has too, the first "
                f"is {name}: leave out what is there twice, or, where the images differ, add --prefix_ids"
            )
        before = np.union1d(before, one.ids)


def _contents(parts: Iterable[Features], dtype: Dtype, prefix: str = "") -> Iterator[Content]:
    """The parts as they are written, with `prefix` before each image id."""
    for part in parts:
        captions = part.captions_by_row()
        for start in range(0, part.num_images, PART):
            rows = slice(start, start + PART)
            ids = [prefix + image_id for image_id in part.image_ids[rows]]
            yield Content(_numbers(part, rows, dtype), ids, part.image_paths[rows], captions[rows])


def _numbers(part: Features, rows: slice, dtype: Dtype) -> np.ndarray:
    """Embeddings [rows, D] in `dtype`."""
    first, last, _ = rows.indices(part.num_images)
    numbers = np.empty((last - first, part.dim), dtype)
    for start in range(first, last, BLOCK):
        exact = part.rows(slice(start, min(start + BLOCK, last))).numpy()
        with np.errstate(over="ignore"):
            block = exact.astype(dtype)
        if (np.isinf(block) & np.isfinite(exact)).any():
            raise ClipcapError(f"{part.path}: holds numbers too large for {dtype}: leave --dtype {dtype} out")
        numbers[start - first : start - first + len(block)] = block
    return numbers
