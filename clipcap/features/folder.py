"""The feature folder, in the layout of clip-retrieval: shards of embeddings that are memory-mapped, and Parquet.

    img_emb/img_emb_0.npy         [rows, D] float16 or float32
    metadata/metadata_0.parquet   a line per row: image_id, image_path, caption, captions
    clipcap.json                  what `FeatureMeta` holds

Folders of clip-retrieval itself have no `clipcap.json`, a single caption per row, and `key` or `url` columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clipcap.atomic import replaced_folder, writing
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta, Features, looks_normalized

SHARD_ROWS = 100_000
META = "clipcap.json"
# Columns that name an image and that say where it lies, the best first.
_IDS = ("image_id", "key", "image_path", "url")
_PATHS = ("image_path", "url", "key")


class ShardedRows:
    """Memory-mapped `.npy` shards as one array; only the rows asked for are read."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self.shards = [_map(path) for path in self.paths]
        first = self.shards[0]
        for path, shard in zip(self.paths, self.shards, strict=True):
            if shard.shape[1] != first.shape[1] or shard.dtype != first.dtype:
                raise ClipcapError(
                    f"{path}: is {shard.shape[1]} wide in {shard.dtype}, {self.paths[0].name} is "
                    f"{first.shape[1]} wide in {first.dtype}: make all shards with one encoder"
                )
        self.starts = np.cumsum([0] + [len(shard) for shard in self.shards])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return int(self.starts[-1]), self.shards[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return getattr(torch, self.shards[0].dtype.name)

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = index.numpy()
        found = np.empty((len(rows), self.shape[1]), np.float32)  # numpy converts faster than torch here
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            here = shard_of == shard
            found[here] = self.shards[shard][rows[here] - self.starts[shard]]
        return torch.from_numpy(found)

    def __reduce__(self) -> tuple:  # a worker process maps the files anew; numpy would send it all the rows
        return ShardedRows, (self.paths,)


def _map(path: Path) -> np.ndarray:
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise ClipcapError(f"{path}: truncated or no .npy array ({reason}): copy or make it again") from error
    if shard.ndim != 2 or shard.dtype.name not in ("float16", "float32", "float64"):
        raise ClipcapError(
            f"{path}: expected floating-point [rows, width], found {shard.dtype} {list(shard.shape)}: make it again"
        )
    return shard


class ArrowStrings(Sequence):
    """Texts that stay in Arrow's memory, decoded when they are looked at: millions are cheap."""

    def __init__(self, texts: pa.Array):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | slice) -> str | list[str | None] | None:
        return self.texts[index].to_pylist() if isinstance(index, slice) else self.texts[int(index)].as_py()

    def __iter__(self) -> Iterator[str | None]:
        for start in range(0, len(self), 10_000):
            yield from self[start : start + 10_000]

    def take(self, index: np.ndarray) -> ArrowStrings:
        """The texts of these numbers."""
        return ArrowStrings(self.texts.take(pa.array(index)))


def read_folder(path: Path) -> Features:
    """Open a feature folder of ours or of clip-retrieval; embeddings are read when they are asked for."""
    shards = _numbered(path / "img_emb", "img_emb", "npy")
    if not shards:
        raise ClipcapError(f"{path}: no img_emb/img_emb_*.npy in it: give a feature file, or parse the images first")
    embeddings = ShardedRows(list(shards.values()))
    if not embeddings.shape[0]:
        raise ClipcapError(f"{path}: holds no images: parse them again")
    metadata = _metadata(path, shards, embeddings)
    captions, caption_rows = _captions(metadata)
    pa.default_memory_pool().release_unused()  # reading Parquet takes several times what is kept
    ids = _first_column(metadata, _IDS, gaps=False) or [f"row {row}" for row in range(len(metadata))]
    paths = _first_column(metadata, _PATHS, gaps=True) or [None] * len(metadata)
    return Features(embeddings, captions, caption_rows, ids, paths, _meta(path, embeddings), path)


def _numbered(folder: Path, stem: str, suffix: str) -> dict[int, Path]:
    """Files `stem_NUMBER.suffix` by number: 10 comes after 9, however they are padded."""
    found = {}
    for file in folder.glob(f"{stem}_*.{suffix}"):
        if number := re.fullmatch(rf"{stem}_(\d+)\.{suffix}", file.name):
            found[int(number[1])] = file
    return dict(sorted(found.items()))


def _metadata(path: Path, shards: dict[int, Path], embeddings: ShardedRows) -> pa.Table:
    """The metadata of all rows; no columns where the folder has no metadata."""
    files = _numbered(path / "metadata", "metadata", "parquet")
    if not files:
        return pa.table({"row": pa.nulls(embeddings.shape[0])})
    if odd := sorted(shards.keys() ^ files.keys()):
        raise ClipcapError(
            f"{path}: shard {odd[0]} has embeddings or metadata, but not both: copy it whole or make it again"
        )
    tables = []
    for file, shard in zip(files.values(), embeddings.shards, strict=True):
        tables.append(_table(file))
        if len(tables[-1]) != len(shard):
            raise ClipcapError(
                f"{file}: has {len(tables[-1]):,} lines for {len(shard):,} embeddings: copy or make the shard again"
            )
    return pa.concat_tables(tables, promote_options="permissive")


def _table(file: Path) -> pa.Table:
    """The columns that matter, texts as large_string (a set of them can outgrow the 2 GB of string)."""
    try:
        there = pq.read_schema(file).names
        wanted = {*_IDS, *_PATHS, "captions" if "captions" in there else "caption"}
        table = pq.read_table(file, columns=[name for name in there if name in wanted])
        lists = pa.large_list(pa.large_string())
        kinds = [(name, lists if name == "captions" else pa.large_string()) for name in table.column_names]
        return table.cast(pa.schema(kinds))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClipcapError(f"{file}: cannot be read ({reason}): copy or make it again") from error


def _captions(metadata: pa.Table) -> tuple[Sequence[str], np.ndarray]:
    """The captions that are not empty, and the row of each."""
    if "captions" in metadata.column_names:
        lists = metadata["captions"].combine_chunks()
        texts, rows = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
    elif "caption" in metadata.column_names:
        texts, rows = metadata["caption"].combine_chunks(), np.arange(len(metadata), dtype=np.int64)
    else:
        return [], np.empty(0, dtype=np.int64)
    there = pc.greater(pc.fill_null(pc.binary_length(texts), 0), 0)
    return ArrowStrings(texts.filter(there)), rows[there.to_numpy(zero_copy_only=False)]


def _first_column(metadata: pa.Table, names: Sequence[str], gaps: bool) -> ArrowStrings | None:
    """The first of these columns that is there, with or without gaps."""
    for name in names:
        if name in metadata.column_names and (gaps or not metadata[name].null_count):
            return ArrowStrings(metadata[name].combine_chunks())
    return None


def _meta(path: Path, embeddings: ShardedRows) -> FeatureMeta:
    file = path / META
    if not file.exists():
        dtype = str(embeddings.dtype).removeprefix("torch.")
        return FeatureMeta(normalized=looks_normalized(embeddings), dtype=dtype)
    try:
        return FeatureMeta.from_file(json.loads(file.read_text(encoding="utf-8")), file)
    except ValueError as error:
        if isinstance(error, ClipcapError):
            raise
        raise ClipcapError(f"{file}: is damaged ({error}): copy it again or parse the images again") from error


def write_folder(
    path: Path,
    embeddings: np.ndarray,
    image_ids: Sequence[str],
    image_paths: Sequence[str | None],
    captions: Sequence[Sequence[str]],
    meta: FeatureMeta,
) -> None:
    """Write a feature folder shard by shard; `embeddings` may be a memory map larger than memory."""
    if path.is_dir() and any(path.iterdir()) and not (path / "img_emb").is_dir():
        raise ClipcapError(f"{path}: is a folder of other files, which would be replaced: choose another name")
    with writing(path), replaced_folder(path) as draft:
        (draft / "img_emb").mkdir()
        (draft / "metadata").mkdir()
        for shard, start in enumerate(range(0, len(embeddings), SHARD_ROWS)):
            rows = slice(start, start + SHARD_ROWS)
            _save(draft / "img_emb" / f"img_emb_{shard}.npy", np.ascontiguousarray(embeddings[rows]))
            table = _metadata_table(image_ids[rows], image_paths[rows], captions[rows])
            with open(draft / "metadata" / f"metadata_{shard}.parquet", "wb") as file:
                pq.write_table(table, file)
        (draft / META).write_text(json.dumps(asdict(meta), indent=2) + "\n", encoding="utf-8")


def _save(path: Path, rows: np.ndarray) -> None:
    """As `np.save`, which does not say why it fails: on a full disk its OSError has no errno."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
        file.write(rows.data)


def _metadata_table(ids: Sequence[str], paths: Sequence[str | None], captions: Sequence[Sequence[str]]) -> pa.Table:
    texts = [[_utf8(text) for text in of_row] for of_row in captions]
    columns = {
        "image_id": (map(_utf8, ids), pa.string()),
        "image_path": ((path and _utf8(path) for path in paths), pa.string()),
        "caption": ((of_row[0] if of_row else None for of_row in texts), pa.string()),  # for clip-retrieval
        "captions": (texts, pa.list_(pa.string())),
    }
    return pa.table({name: pa.array(list(values), kind) for name, (values, kind) in columns.items()})


def _utf8(text: str) -> str:
    """File names may hold bytes that are no UTF-8, which Arrow refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")
