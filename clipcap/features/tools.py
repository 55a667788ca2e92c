"""`clipcap features`: what a feature file holds, whether it is sound, and files made of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Content, FeatureMeta, Features, LazyColumn, hashed
from clipcap.features.files import check_place, find_features, read_parts, write_parts
from clipcap.features.split import rows_held_out, split_path
from clipcap.features.verify import find_faults
from clipcap.images.word_cloud import write_cloud
from clipcap.options import LARGEST_SEED, within
from clipcap.runtime.disk_arrays import GrowingArray, blocks, in_order, scratch
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import counted, printable

Dtype = Literal["float16", "float32"]
CLOUDS = (".svg", ".png")  # endings of a word cloud
BLOCK = 8192  # rows converted at a time


@dataclass(frozen=True)
class Survey:
    """What a feature file holds, without its embeddings and texts: 16 bytes per row, in temporary files."""

    path: Path
    meta: FeatureMeta
    dim: int
    dtype: Dtype  # that it would be written in
    ids: np.ndarray  # int64 [N], the image id of each row as a number
    captions: np.ndarray  # int64 [N], how many each row has

    @cached_property
    def images(self) -> np.ndarray:
        """A number for each row's image, int64 [N], from 0 on."""
        return in_order(self.ids)

    def captions_per_image(self, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(whether an image has a row, bool, how many captions it has, int64), of the rows where `chosen` is true."""
        count = int(self.images.max()) + 1
        there, captions = scratch(count, bool), scratch(count, np.int64)
        for block in blocks(len(self.ids)):
            rows = slice(None) if chosen is None else chosen[block]
            there[self.images[block][rows]] = True
            np.add.at(captions, self.images[block][rows], self.captions[block][rows])
        return there, captions

    def written(self, path: Path, chosen: np.ndarray | None = None) -> str:
        """What to say when the rows were written where `chosen`, bool [N], is true, or all."""
        there, captions = self.captions_per_image(chosen)
        images = counted(int(np.count_nonzero(there)), "image")
        return f"wrote {path}: {images}, {counted(int(captions.sum()), 'caption')}"


def survey(path: str | Path, parts: Iterable[Features]) -> Survey:
    """Go once through a feature file."""
    ids, captions, part = GrowingArray(np.int64), GrowingArray(np.int64), None
    for part in parts:
        ids.append(hashed(part.image_ids))
        captions.append(np.bincount(part.caption_rows, minlength=part.num_images))
    if part is None:
        raise ClipcapError(f"{path}: has no rows: parse the images again")
    dtype = "float16" if part.embeddings.dtype == torch.float16 else "float32"
    return Survey(Path(path), part.meta, part.dim, dtype, ids.close(), captions.close())


def info(path: str | Path, words: str | None = None) -> str:
    """What a feature file is and holds, a line each.

    Args:
        path: of the file.
        words: draw a cloud of its captions' words here: NAME.svg, or a picture.
    Raises:
        ClipcapError: no feature file, or the cloud cannot be written.
    """
    file = find_features(path)
    if words and Path(words).suffix.lower() not in CLOUDS:
        raise ClipcapError(f"--words {words}: end the name in {', '.join(CLOUDS)}")
    seen = survey(path, read_parts(path))
    meta, rows = seen.meta, len(seen.ids)
    _, each = seen.captions_per_image()
    spread = f"min {each.min():.0f}, mean {each.mean():.2f}, max {each.max():.0f}"
    size = sum(f.stat().st_size for f in (file.rglob("*") if file.is_dir() else [file]) if f.is_file())
    guessed = " (guessed from the width: the file does not say)" * meta.encoder_guessed
    lines = {
        "kind": f"feature {'folder' if file.is_dir() else 'pickle'}, {_bytes(size)}",
        "images": f"{len(each):,}" + f" in {rows:,} rows" * (rows != len(each)),
        "captions": f"{each.sum():,.0f} (per image: {spread})",
        "width": f"{seen.dim}, {meta.dtype or seen.dtype}, {'' if meta.normalized else 'not '}normalised",
        **({"tokens": f"{meta.tokens}, float16"} if meta.tokens else {}),
        "encoder": (meta.encoder or "not known") + guessed,
        "weights id": meta.encoder_weights_id or "not known",
        "source": meta.source or "not known",
        "written by": f"clipcap {meta.clipcap_version}" if meta.clipcap_version else "not known",
    }
    if words:
        lines["words"] = _draw_words(path, Path(words).expanduser())
    return "\n".join([str(path), *(f"  {name + ':':12}{printable(value)}" for name, value in lines.items())])


def _draw_words(path: str | Path, out: Path) -> str:
    """Draw the cloud of the captions; the commonest words in a line."""
    texts = (caption for part in read_parts(path) for caption in part.captions)
    with writing(out), replaced_file(out) as draft:
        counts = write_cloud(texts, draft, out.suffix.lower())
    commonest = ", ".join(f"{word} {count:,}" for word, count in counts.most_common(5))
    return f"{len(counts):,} different ones without stop words, drawn to {out}; commonest: {commonest}"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def verify(path: str | Path) -> bool:
    """Print what is wrong with a feature file, a line for each kind of fault; returns whether it is sound."""
    findings = find_faults(find_features(path))
    lines = [f"{path}: {printable(fault)}" for fault in findings.faults]
    if findings.repeated:
        lines.append(
            f"{path}: note: {findings.repeated:,} rows repeat an image, as in files with a row for each caption"
        )
    if not findings.faults:
        lines.append(
            f"{path}: {counted(findings.images, 'row')}, {counted(findings.captions, 'caption')}, nothing wrong"
        )
    print("\n".join(lines))
    return not findings.faults


@writes_to("out")
def convert(path: str | Path, out: str | Path, dtype: Dtype | None, encoder: str | None) -> None:
    """Write features anew, as a pickle or a folder.

    Args:
        path: of the features.
        out: NAME.pkl, or a folder.
        dtype: of the numbers; as they are where it is None.
        encoder: name of the encoder, of a file that does not say it.
    """
    check_place(Path(out))
    parts = read_parts(path, encoder)
    seen = survey(path, parts)
    dtype = dtype or seen.dtype
    write_parts(out, contents(parts, dtype), replace(seen.meta, dtype=dtype))
    logger.info(seen.written(Path(out)))


@writes_to("out")
def split(path: str | Path, train_size: float, seed: int, out: str | Path) -> None:
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
    in_val = rows_held_out(seen.images, share, seed, seen.path)
    in_train = np.logical_not(in_val, out=scratch(len(in_val), bool))
    for place, chosen in ((places["train"], in_train), (places["val"], in_val)):
        write_parts(place, contents(_chosen(parts, chosen), seen.dtype), replace(seen.meta, dtype=seen.dtype))
        logger.info(seen.written(place, chosen))


def _chosen(parts: Iterable[Features], chosen: np.ndarray) -> Iterator[Features]:
    """The rows where `chosen`, bool [N], is true."""
    start = 0
    for part in parts:
        yield part.subset_by_row(np.flatnonzero(chosen[start : start + part.num_images]))
        start += part.num_images


@writes_to("out")
def merge(paths: Sequence[str | Path], out: str | Path, prefix_ids: bool, encoder: str | None) -> None:
    """Write the features of several files as one, in their order.

    Args:
        paths: of the files.
        out: NAME.pkl, or a folder.
        prefix_ids: set each file's name before its image ids, where ids mean different images in different files.
        encoder: name of the encoder, of files that do not say it.
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
    merged = (
        content
        for path, prefix in zip(paths, prefixes)
        for content in contents(read_parts(path, encoder), dtype, prefix)
    )
    write_parts(out, merged, replace(meta, dtype=dtype))
    counts = [one.captions_per_image() for one in seen]
    images, captions = (sum(map(np.sum, column)) for column in zip(*counts))
    logger.info(f"wrote {out}: {counted(images, 'image')}, {counted(captions, 'caption')}")


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
        if one.meta.tokens != other.meta.tokens:
            ours, theirs = (
                f"tokens {meta.tokens}" if meta.tokens else "no tokens" for meta in (one.meta, other.meta)
            )
            raise ClipcapError(f"{other.path}: holds {theirs}, {one.path} {ours}: parse both with the same --tokens")
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
    before = np.empty(0, np.int64)  # the ids of all files so far, sorted
    for one in seen:
        shared = scratch(len(one.ids), bool)
        for block in blocks(len(before) and len(one.ids)):
            place = np.searchsorted(before, one.ids[block]).clip(max=len(before) - 1)
            shared[block] = before[place] == one.ids[block]
        if count := np.count_nonzero(shared):
            shared[int(shared.argmax()) + 1 :] = False
            first = _chosen(read_parts(one.path), shared)
            name = next(part.image_ids[0] for part in first if part.num_images)
            raise ClipcapError(
                f"{one.path}: {count:,} of its rows have an image id that a file before it has too, the first "
                f"is {name}: leave out the repeated one, or, where the images differ, add --prefix_ids"
            )
        together = scratch(len(before) + len(one.ids), np.int64)
        together[: len(before)], together[len(before) :] = before, one.ids
        together.sort()
        before = together


def contents(parts: Iterable[Features], dtype: Dtype, prefix: str = "") -> Iterator[Content]:
    """The parts as they are written, with `prefix` before each image id."""
    for part in parts:
        yield Content(
            LazyColumn(part.num_images, partial(_numbers, part, dtype)),
            LazyColumn(part.num_images, partial(_ids, part, prefix)),
            part.image_paths,
            LazyColumn(part.num_images, part.captions_by_row),
            LazyColumn(part.num_images, partial(_token_numbers, part)) if part.tokens is not None else None,
        )


def _ids(part: Features, prefix: str, start: int, stop: int) -> list[str]:
    return [prefix + image_id for image_id in part.image_ids[start:stop]]


def _token_numbers(part: Features, start: int, stop: int) -> np.ndarray:
    """Tokens float16 [stop − start, T, W]."""
    assert part.tokens is not None, "the caller has checked that there are tokens"
    return part.tokens[torch.arange(start, stop)].numpy().astype(np.float16)


def _numbers(part: Features, dtype: Dtype, start: int, stop: int) -> np.ndarray:
    """Embeddings [stop − start, D] in `dtype`."""
    numbers = np.empty((stop - start, part.dim), dtype)
    for rows in blocks(stop - start, BLOCK):
        exact = part.rows(slice(start + rows.start, start + rows.stop)).numpy()
        with np.errstate(over="ignore"):
            numbers[rows] = exact.astype(dtype)
        if (np.isinf(numbers[rows]) & np.isfinite(exact)).any():
            raise ClipcapError(f"{part.path}: holds numbers too large for {dtype}: leave --dtype {dtype} out")
    return numbers
