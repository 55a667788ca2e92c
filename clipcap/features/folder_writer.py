"""Writing a feature folder, a shard at a time and of a shard some rows: the whole may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipcap.features.feature_set import Content, FeatureMeta, Sliced
from clipcap.features.folder import META, STEMS, TOKENS, Tower
from clipcap.runtime.disk_arrays import blocks
from clipcap.runtime.files import replaced_folder, writing
from clipcap.runtime.json_text import to_json

SHARD_ROWS = 100_000
TOGETHER = 8192  # rows converted and written at a time
BLOCK_BYTES = 64 << 20  # fewer where they take more


def write_folder(path: Path, parts: Iterable[Content], meta: FeatureMeta, tower: Tower = "image") -> None:
    """Write a feature folder as its parts come, each in shards of its own; `tower` made the embeddings."""
    stem = STEMS[tower]
    with writing(path), replaced_folder(path) as draft:
        (draft / stem).mkdir()
        (draft / "metadata").mkdir()
        if meta.tokens:
            (draft / TOKENS).mkdir()
        number = 0
        for part in parts:
            for rows in blocks(len(part.image_ids), SHARD_ROWS):
                _save(draft / stem / f"{stem}_{number}.npy", part.embeddings, rows)
                if part.tokens is not None:
                    _save(draft / TOKENS / f"{TOKENS}_{number}.npy", part.tokens, rows)
                _save_metadata(draft / "metadata" / f"metadata_{number}.parquet", part, rows)
                number += 1
        (draft / META).write_text(to_json(meta.stored(), indent=2) + "\n", encoding="utf-8")


def _within(rows: slice, together: int = TOGETHER) -> Iterator[slice]:
    """Slices that cover `rows`, some at a time."""
    return (
        slice(rows.start + part.start, rows.start + part.stop) for part in blocks(rows.stop - rows.start, together)
    )


def _save(path: Path, embeddings: Sliced, rows: slice) -> None:
    """As `np.save`, which does not say why it fails: on a full disk its OSError has no errno."""
    with open(path, "wb") as file:
        first = np.asarray(embeddings[slice(rows.start, rows.start + 1)])
        together = max(1, min(TOGETHER, BLOCK_BYTES // first.nbytes))
        for part in _within(rows, together):
            block = np.ascontiguousarray(embeddings[part])
            if part.start == rows.start:
                header = np.lib.format.header_data_from_array_1_0(block)
                shape = (rows.stop - rows.start, *block.shape[1:])
                np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            file.write(block.data)


def _save_metadata(path: Path, part: Content, rows: slice) -> None:
    """The metadata of these rows; only in Arrow's form are they all in memory."""
    tables = [
        _metadata_table(part.image_ids[some], part.image_paths[some], part.captions[some]) for some in _within(rows)
    ]
    with open(path, "wb") as file:
        pq.write_table(pa.concat_tables(tables), file)


def _metadata_table(ids: Sequence[str], paths: Sequence[str | None], captions: Sequence[Sequence[str]]) -> pa.Table:
    texts = [[_utf8(text) for text in row_captions] for row_captions in captions]
    columns = {
        "image_id": (map(_utf8, ids), pa.string()),
        "image_path": ((path and _utf8(path) for path in paths), pa.string()),
        "caption": (
            (row_captions[0] if row_captions else None for row_captions in texts),
            pa.string(),
        ),  # for clip-retrieval
        "captions": (texts, pa.list_(pa.string())),
    }
    return pa.table({name: pa.array(list(values), kind) for name, (values, kind) in columns.items()})


def _utf8(text: str) -> str:
    """Replace what is not UTF-8 in a file name: Arrow refuses it."""
    return text.encode("utf-8", "replace").decode("utf-8")
