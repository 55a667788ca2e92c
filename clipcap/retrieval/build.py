"""Building an index folder from features, and adding to it: row by row, whole or not at all.

index.json       encoder and its weights, kind, counts
part_0, part_1   rows, see `clipcap.retrieval.parts`
trained.index    faiss without rows, for the parts of an approximate index
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

import clipcap
from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import FeatureMeta, Features
from clipcap.features.files import read_parts
from clipcap.retrieval.caption_features import CaptionParts, holds_texts
from clipcap.retrieval.config import IndexConfig
from clipcap.retrieval.duplicates import describe, near_duplicates
from clipcap.retrieval.exact import Hits, gather_rows, scales_of
from clipcap.retrieval.faiss_index import (
    Kind,
    Rescored,
    add_rows,
    load_faiss,
    read_faiss,
    sample_of,
    sample_size,
    trained,
    write_faiss,
)
from clipcap.retrieval.index import CONFIG, FORMAT_VERSION, Index, read_config
from clipcap.retrieval.parts import PartWriter
from clipcap.retrieval.photo_folder import STATE, forget_encoded, is_photo_folder, photo_features, write_state
from clipcap.runtime.files import current_path, replaced_folder, writing
from clipcap.runtime.json_text import to_json
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.progress import no_bar
from clipcap.runtime.run_file import write_run_file
from clipcap.runtime.text import counted

PART_ROWS = 500_000  # faiss holds a part in memory while it is built
BLOCK = 8192  # rows copied at a time
ASKED = 100  # rows to search for when recall is measured
NEAREST = (1, 10, 100)
SAME = 1e-2  # share of its norm by which two encodings of one picture may differ


@writes_to("config.out")
def build_index(sources: Sequence[str | Path], config: IndexConfig) -> Index:
    """Write the index of features, or add them to an existing one.

    Args:
        sources: feature files and folders of one encoder, or folders of photos.
    Raises:
        ClipcapError: bad features, features of several encoders, or no place to write; what was at `out` stays.
    """
    out, started = Path(config.out), time.perf_counter()
    _check_place(out, config.append)
    photos = _photos(sources, config)
    parts = [[photos]] if photos else [_parts(source, config) for source in sources]
    with writing(out), replaced_folder(out) as draft:
        content = _copy_existing(current_path(out), draft, config) if config.append else _new(config)
        before = len(content["parts"])
        for source_parts in parts:
            _copy(source_parts, draft, content)
        index = _save(draft, content)
        content["images"] = len(np.unique(np.concatenate([part.images for part in index.parts])))
        if not config.append:
            content["kind"] = _kind(config, len(index))
        if content["kind"] != "exact":
            _approximate(index, draft, cast(Kind, content["kind"]), before)
            index = _save(draft, content)
            near = cast(Rescored, index.approximate)  # as our approximate indexes are
            content["probe"], content["recall"] = measured(index, near, config.recall)
            _save(draft, content)
        if photos:
            write_state(draft, photos)
        if not config.append:  # what was added has no run of its own
            write_run_file(draft, "index", {"sources": [str(source) for source in sources], **config.flat()})
    forget_encoded(out)
    index = Index.open(out)
    for line in _summary_lines(index, content, time.perf_counter() - started):
        logger.info(line)
    if config.duplicates:
        print(describe(near_duplicates(index, config.duplicate_cosine), config.duplicate_cosine))
    return index


def _photos(sources: Sequence[str | Path], config: IndexConfig) -> Features | None:
    """The embeddings of photos, where the sources are folders of photos."""
    folders = [source for source in sources if is_photo_folder(source)]
    if folders and len(folders) < len(sources):
        raise ClipcapError(
            "photos and features are two kinds of sources: parse the photos first, or index them apart"
        )
    return photo_features(folders, config) if folders else None


def _parts(source: str | Path, config: IndexConfig) -> Iterable[Features]:
    """The features of a source; for texts, those that it holds, else its captions encoded now."""
    if config.tower == "text" and not holds_texts(source):
        return CaptionParts(source, config.clip_model_type)
    return read_parts(source, config.clip_model_type, config.tower)


def _check_place(out: Path, append: bool) -> None:
    place = current_path(out)
    if append and not (place / CONFIG).exists():
        raise ClipcapError(f"--out {out}: is not an index to add to: leave out --append to make one")
    if append and (place / STATE).exists():
        raise ClipcapError(
            f"--out {out}: is an index of photos, and its next update would remove what --append adds: put photos "
            "into its folders, or index the features apart"
        )
    if place.is_file():
        raise ClipcapError(f"--out {out}: is a file: an index is a folder")
    if place.is_dir() and any(place.iterdir()) and not (place / CONFIG).exists():
        raise ClipcapError(f"--out {out}: is a folder of other files: choose a new name")


def _new(config: IndexConfig) -> dict[str, Any]:
    head = {"format_version": FORMAT_VERSION, "clipcap_version": clipcap.__version__, "tower": config.tower}
    return {**head, "kind": "exact", "images": 0, "probe": 0, "recall": {}, "meta": None, "sources": [], "parts": []}


def _copy_existing(place: Path, draft: Path, config: IndexConfig) -> dict[str, Any]:
    """What the index says of itself; its parts stand in the draft too, as links: they are never changed."""
    Index.open(place)  # whole, and of a format known here
    content = read_config(place)
    if content["tower"] != config.tower:
        raise ClipcapError(f"{place}: is of embeddings of the {content['tower']} tower: add such with --tower")
    for file in sorted(place.rglob("*")):
        copy = draft / file.relative_to(place)
        if file.is_dir():
            copy.mkdir()
        elif file.name != CONFIG:
            _link(file, copy)
    return content


def _link(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy)
    except OSError:  # a file system without hard links
        shutil.copy2(file, copy)


def _save(draft: Path, content: dict[str, Any]) -> Index:
    (draft / CONFIG).write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
    return Index.open(draft)


def _copy(source: Iterable[Features], draft: Path, content: dict[str, Any]) -> None:
    """Add the rows of features as parts of the index."""
    before, writer, path = len(content["parts"]), None, None
    with tqdm(unit="row", desc="indexing", disable=no_bar()) as bar:
        for features in source:
            _check_encoder(features, content)
            path = features.path
            for first in range(0, features.num_images, BLOCK):
                here = slice(first, min(first + BLOCK, features.num_images))
                rows = features.embeddings[here]  # [B, D]
                rows = rows if rows.dtype == torch.float16 else rows.float()
                if writer and writer.count + len(rows) > PART_ROWS:
                    content["parts"].append(writer.close())
                    writer = None
                writer = writer or PartWriter(draft / f"part_{len(content['parts'])}", rows)
                captions = features.captions_by_row(here.start, here.stop)
                writer.add(rows, features.image_ids[here], features.image_paths[here], captions)
                bar.update(len(rows))
    if writer is None or path is None:
        raise ClipcapError("there is nothing to index: the features have no rows")
    content["parts"].append(writer.close())
    content["sources"].append(str(path.absolute()))
    if before:
        _check_ids(_save(draft, content), before, path)


def _check_encoder(features: Features, content: dict[str, Any]) -> None:
    """Note the encoder of the first features; refuse others of another one."""
    if content["meta"] is None:
        names = ("encoder", "encoder_weights_id", "encoder_guessed")
        content["meta"] = FeatureMeta(**{name: getattr(features.meta, name) for name in names}).stored()
        content["dim"] = features.dim
    known = FeatureMeta(**content["meta"])
    encoder = None if known.encoder_guessed else known.encoder
    check_same_encoder(
        features.meta, features.dim, encoder, known.encoder_weights_id, content["dim"], features.path, "the index"
    )


def _check_ids(index: Index, before: int, path: Path) -> None:
    """Refuse image ids of the parts from number `before` on that earlier parts give to other images."""
    old, new = index.parts[:before], index.parts[before:]
    numbers = [np.concatenate([part.images for part in parts]) for parts in (old, new)]
    _, *shared = np.intersect1d(numbers[0], numbers[1], return_indices=True)  # where each first occurs, twice [S]
    for first in range(0, len(shared[0]), BLOCK):
        a, b = (_in_any_order(parts, rows[first : first + BLOCK]) for parts, rows in zip((old, new), shared))
        different = ((a - b).norm(dim=1) > SAME * a.norm(dim=1)).nonzero().flatten().tolist()
        if different:
            name = index.catalogue.entry(int(shared[0][first + different[0]])).image_id
            raise ClipcapError(
                f"{path}: image id {name!r} is that of another image in the index: make the ids of the sets differ "
                "(`clipcap features merge --prefix_ids`)"
            )


def _in_any_order(parts: Sequence[Any], rows: np.ndarray) -> torch.Tensor:
    ascending, place = np.unique(rows, return_inverse=True)
    return gather_rows(parts, ascending)[0][torch.from_numpy(place)]


def _kind(config: IndexConfig, rows: int) -> str:
    """`auto` is exact up to a size, and where faiss is not there."""
    if config.kind != "auto":
        return config.kind
    if rows <= config.exact_up_to:
        return "exact"
    try:
        load_faiss()
    except ClipcapError as error:
        logger.info(f"{rows:,} rows, searched exactly: {error}")
        return "exact"
    return "ivf"


def _approximate(index: Index, draft: Path, kind: Kind, before: int) -> None:
    """faiss indexes of the parts from number `before` on."""
    if not before:
        rows = len(index)
        write_faiss(trained(kind, sample_of(index.parts, sample_size(rows)), rows), draft / "trained.index")
    for number, part in list(enumerate(index.parts))[before:]:
        near = read_faiss(draft / "trained.index", mapped=False)
        with tqdm(total=len(part.images), unit="row", desc=f"adding to {kind}", disable=no_bar()) as bar:
            for added in add_rows(near, part):
                bar.update(added)
        write_faiss(near, draft / f"part_{number}" / "near.index")


def measured(index: Index, near: Rescored, target: float) -> tuple[int, dict[str, float]]:
    """How far an approximate index must look, and what it finds then of what an exact search finds.

    Rows of the index are searched for, and the neighbours of their images counted, themselves left out.

    Args:
        target: share of the 10 nearest to be found.
    Returns:
        (the smallest `probe` that finds this share, or the largest; the shares of the nearest 1, 10, 100 it finds).
    """
    chosen = np.sort(np.random.default_rng(1).choice(len(index), min(ASKED, len(index)), replace=False))
    queries, own = gather_rows(index.parts, chosen)
    good = scales_of(queries) > 0
    queries, own = queries[good], own[good.numpy()]
    truth = _others(index.hits(queries, max(NEAREST) + 1, exact=True), own)

    def share(k: int) -> float:
        pairs = list(zip(truth, _others(index.hits(queries, k + 1), own)))
        asked = sum(len(true[:k]) for true, _ in pairs)
        return sum(len({*true[:k]} & {*found[:k]}) for true, found in pairs) / asked if asked else 1.0

    probe = near.probe
    for probe in near.probes():
        near.probe = probe
        if share(10) >= target:
            break
    return probe, {str(k): share(k) for k in NEAREST}


def _others(hits: Hits, own: np.ndarray) -> list[list[int]]:
    """The images that each query found, but its own, best first."""
    found: list[list[int]] = [[] for _ in own]
    for query, image in zip(hits.query.tolist(), hits.image.tolist()):
        if image != own[query]:
            found[query].append(image)
    return found


def _summary_lines(index: Index, content: dict[str, Any], seconds: float) -> Iterator[str]:
    size = sum(file.stat().st_size for file in index.path.rglob("*") if file.is_file())
    yield (
        f"{index.path}: {counted(len(index), 'row')} of {counted(content['images'], 'image')}, {index.dim} wide, of "
        f"{index.meta.encoder or 'an encoder not known'}; {index.kind}, {size / 1e6:,.1f} MB, {seconds:.1f} s"
    )
    lost = sum(int((part.scales == 0).sum()) for part in index.parts)
    if lost:
        yield f"{lost:,} rows have no direction (zeros, NaN or infinity) and are never found"
    if content["recall"]:
        found = ", ".join(f"{share:.1%} of the nearest {k}" for k, share in content["recall"].items())
        name = {"ivf": "nprobe", "hnsw": "efSearch"}[index.kind]
        yield f"{name} {content['probe']} finds {found} (of an exact search; {ASKED} rows of the index asked)"
