"""Looking through a feature file for what is wrong in it: all of it, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta, Rows, hashed
from clipcap.features.folder import (
    ShardedRows,
    caption_texts,
    numbered,
    open_tokens,
    read_meta,
    read_metadata,
    row_ids,
)  # fmt: skip
from clipcap.features.pickle_file import embeddings_of, read_caption, read_content
from clipcap.features.pickle_file import row_ids as row_ids_of_pickle
from clipcap.runtime.disk_arrays import GrowingArray, blocks, in_order, scratch

pc: Any = compute  # pyarrow makes its functions when it is imported: a type checker sees none of them
BLOCK = 8192  # rows looked at together
TOKENS_TOGETHER = 256


class Findings:
    """What a feature file holds, and each kind of fault in it: how many there are, and the first one."""

    def __init__(self) -> None:
        self.images = 0
        self.captions = 0
        self.repeated = 0  # rows that say again what an earlier row of the same image id says
        self._faults: dict[str, tuple[int, str]] = {}

    @property
    def faults(self) -> list[str]:
        """A line for each kind."""
        return [f"{kind}: {count:,}, the first: {first}" for kind, (count, first) in self._faults.items()]

    def add(self, kind: str, count: int, first: str) -> None:
        """Note faults of a kind; what was noted first stays the first."""
        before, earlier = self._faults.get(kind, (0, first))
        self._faults[kind] = (before + count, earlier)

    @contextmanager
    def noting(self, kind: str) -> Iterator[None]:
        """Note the error that ends the block."""
        try:
            yield
        except ClipcapError as error:
            self.add(kind, 1, str(error))


def find_faults(path: Path) -> Findings:
    """Read all of a feature pickle or folder; of a folder, memory holds one shard's metadata."""
    findings = Findings()
    with findings.noting("damaged"):
        look = _look_through_folder if path.is_dir() else _look_through_pickle
        look(path, findings)
    return findings


def _look_through_folder(path: Path, findings: Findings) -> None:
    arrays, tables = numbered(path, "img_emb", "npy"), numbered(path, "metadata", "parquet")
    if not arrays:
        raise ClipcapError(f"{path}: no img_emb/img_emb_*.npy in it")
    good: list[int] = []
    ids = GrowingArray(np.int64)
    for number in sorted(arrays.keys() | tables.keys()):
        if number not in arrays or (tables and number not in tables):
            findings.add("shards with embeddings or metadata, but not both", 1, f"shard {number}")
            continue
        with findings.noting("damaged shards"):
            ShardedRows([arrays[shard] for shard in (*good[:1], number)])  # of one width and number type
            rows = ShardedRows([arrays[number]])
            metadata = _metadata(tables.get(number), rows)
            if len(metadata) != rows.shape[0]:
                counts = f"{len(metadata):,} lines for {rows.shape[0]:,} embeddings"
                findings.add("shards whose counts disagree", 1, f"{tables[number]} has {counts}")
                continue
            ids.append(_look_at_shard(rows, metadata, findings))
            good.append(number)
    if not good:
        return
    if not findings.images:
        raise ClipcapError(f"{path}: holds no images")
    everything = ShardedRows([arrays[number] for number in good])
    with findings.noting("damaged meta"):
        meta = read_meta(path, everything)
        with findings.noting("damaged tokens"):
            _look_at_tokens(open_tokens(path, everything, meta), findings)

    def name(row: int) -> str:
        shard = int(np.searchsorted(everything.starts, row, side="right")) - 1
        metadata = _metadata(tables.get(good[shard]), everything)
        return row_ids(metadata)[row - int(everything.starts[shard])]

    _look_for_repeated(everything, ids.close(), name, findings)


def _look_at_tokens(tokens: ShardedRows | None, findings: Findings) -> None:
    """Tokens that no encoder gives; those of zeros stand for none, but not all of an image."""
    for rows in blocks(0 if tokens is None else tokens.shape[0], TOKENS_TOGETHER):
        assert tokens is not None, "without tokens there are no blocks"
        block = tokens[torch.arange(rows.start, rows.stop)].flatten(1)
        for kind, wrong in (
            ("tokens with NaN or infinity", ~block.isfinite().all(dim=1)),
            ("images with tokens of zeros alone", ~block.any(dim=1)),
        ):
            if found := wrong.nonzero().flatten().tolist():
                findings.add(kind, len(found), f"row {rows.start + found[0]}")


def _metadata(file: Path | None, rows: ShardedRows) -> pa.Table:
    return read_metadata(file) if file else pa.table({"row": pa.nulls(rows.shape[0])})


def _look_at_shard(rows: ShardedRows, metadata: pa.Table, findings: Findings) -> np.ndarray:
    """Its image ids as numbers, int64 [rows]."""
    names = row_ids(metadata, findings.images)
    texts, rows_of_texts = caption_texts(metadata)
    empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)  # a null is not a caption
    blank = rows_of_texts[pc.fill_null(empty, False).to_numpy(zero_copy_only=False)]
    if len(blank):
        findings.add("empty captions", len(blank), _row(findings.images, blank[0], names))
    findings.captions += len(texts) - texts.null_count - len(blank)
    _look_at_rows(rows, names, findings)
    return hashed(names)


def _look_through_pickle(path: Path, findings: Findings) -> None:
    content = read_content(path)
    rows, items = embeddings_of(content, path), content["captions"]
    named: dict[int, str] = {}
    for number in range(len(items)):
        with findings.noting("captions that point at no row, or are not text"):
            caption, row, image_id = read_caption(items, number, len(rows), path)
            if image_id is not None:
                named.setdefault(row, image_id)
            if caption.strip():
                findings.captions += 1
            else:
                findings.add("empty captions", 1, f"captions[{number}] of row {row}")
    with findings.noting("damaged meta"):
        FeatureMeta.from_file(content.get("meta", {}), path)
    ids = row_ids_of_pickle(content, named, len(rows), path)
    _look_at_rows(rows, ids, findings)
    _look_for_repeated(rows, hashed(ids), lambda row: ids[row], findings)


def _look_at_rows(rows: Rows, ids: Sequence[str], findings: Findings) -> None:
    """Numbers that no encoder gives."""
    count = rows.shape[0]
    for start in range(0, count, BLOCK):
        block = rows[torch.arange(start, min(start + BLOCK, count))].float()
        for kind, wrong in (
            ("embeddings with NaN or infinity", ~block.isfinite().all(dim=1)),
            ("embeddings of zeros", ~block.any(dim=1)),
        ):
            found = wrong.nonzero().flatten().tolist()
            if found:
                findings.add(kind, len(found), _row(findings.images, start + found[0], ids))
    findings.images += count


def _row(before: int, row: int, ids: Sequence[str]) -> str:
    return f"row {before + row} (image {ids[int(row)]})"


def _look_for_repeated(rows: Rows, ids: np.ndarray, name: Callable[[int], str], findings: Findings) -> None:
    """Rows of one image id must be alike: the original writes one for each caption."""
    images = in_order(ids)
    last = scratch(len(ids), np.int64)  # + 1: the row of each image that was looked at last
    for block in blocks(len(ids), BLOCK):
        here = images[block]
        order = np.argsort(here, kind="stable")
        before = last[here]
        again = here[order[1:]] == here[order[:-1]]  # within the block
        before[order[1:][again]] = block.start + order[:-1][again] + 1
        last[here[order]] = block.start + order + 1
        found = np.flatnonzero(before)
        earlier, later = torch.from_numpy(before[found] - 1), torch.from_numpy(block.start + found)
        different = ~_alike(rows[earlier].float(), rows[later].float())
        findings.repeated += int((~different).sum())
        if found := different.nonzero().flatten().tolist():
            row, before = int(later[found[0]]), int(earlier[found[0]])
            first = f"{name(row)} is row {before} and, with another embedding, row {row}"
            findings.add("image ids given twice", len(found), first)


def _alike(a: Tensor, b: Tensor) -> Tensor:
    """Whether two encodings are of one picture, bool [B]: the last bits may differ."""
    return (a - b).norm(dim=1) <= 1e-2 * a.norm(dim=1)
