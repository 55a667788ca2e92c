"""The feature folder, in the layout of clip-retrieval: memory-mapped shards of embeddings, and Parquet.

    img_emb/img_emb_0.npy         [rows, D] float16 or float32
    tok_emb/tok_emb_0.npy         [rows, T, W] float16, where tokens of the images were asked for
    metadata/metadata_0.parquet   a line per row: image_id, image_path, caption, captions
    clipcap.json                  what `FeatureMeta` holds

Folders of clip-retrieval itself have no `clipcap.json`, a single caption per row, and `key` or `url` columns.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import compute
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta, Features, Rows, looks_normalized
from clipcap.runtime.disk_arrays import by_shard
from clipcap.runtime.safe_load.parquet import DAMAGED, read_batches, unreadable

pc: Any = compute  # pyarrow makes its functions when it is imported: a type checker sees none of them
META = "clipcap.json"
Tower = Literal["image", "text"]
TOKENS = "tok_emb"  # folder of the tokens
STEMS: dict[Tower, str] = {"image": "img_emb", "text": "text_emb"}  # folders of the embeddings
# Columns that name an image and that say where it lies, the best first.
IDS = ("image_id", "key", "image_path", "url")
PATHS = ("image_path", "url", "key")
CAPTIONS = ("captions", "caption")
ALL_COLUMNS = frozenset((*IDS, *PATHS, *CAPTIONS))


class ShardedRows:
    """Memory-mapped `.npy` shards as one array; only the rows asked for are read.

    Args:
        paths: of the shards.
        ndim: 2 for embeddings [rows, D], 3 for tokens [rows, T, W].
    """

    def __init__(self, paths: Sequence[Path], ndim: int = 2):
        self.paths, self.ndim = list(paths), ndim
        self.shards = [_map(path, ndim) for path in self.paths]
        first = self.shards[0]
        for path, shard in zip(self.paths, self.shards, strict=True):
            if shard.shape[1:] != first.shape[1:] or shard.dtype != first.dtype:
                sizes = (" x ".join(map(str, one.shape[1:])) for one in (shard, first))
                raise ClipcapError(
                    f"{path}: is {next(sizes)} wide in {shard.dtype}, {self.paths[0].name} is "
                    f"{next(sizes)} wide in {first.dtype}: make all shards with one encoder"
                )
        self.starts = np.cumsum([0] + [len(shard) for shard in self.shards])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D), of tokens (N, T, W)."""
        return int(self.starts[-1]), *self.shards[0].shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return getattr(torch, self.shards[0].dtype.name)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            return self._between(*index.indices(self.shape[0])[:2])
        rows = index.numpy()
        found = np.empty((len(rows), *self.shape[1:]), np.float32)  # numpy converts faster than torch here
        for shard, places, shard_rows in by_shard(self.starts, rows):
            found[places] = self.shards[shard][shard_rows]
        return torch.from_numpy(found)

    def _between(self, start: int, stop: int) -> Tensor:
        """Rows one after another, in the stored type; those of one shard are the mapped file: not to be written."""
        bounds = zip(self.shards, self.starts.tolist(), self.starts[1:].tolist())
        parts = [shard[max(start - a, 0) : stop - a] for shard, a, b in bounds if a < stop and start < b]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch knows no memory that is only read, and says so
            return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate([self.shards[0][:0], *parts]))

    def __reduce__(self) -> tuple:  # a worker process maps the files anew; numpy would send it all the rows
        return ShardedRows, (self.paths, self.ndim)


def _map(path: Path, ndim: int) -> np.ndarray:
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, which fails in many ways
        reason = " ".join(str(error).split())
        raise ClipcapError(f"{path}: truncated or no .npy array ({reason}): copy or make it again") from error
    if shard.ndim != ndim or shard.dtype.name not in ("float16", "float32", "float64"):
        raise ClipcapError(
            f"{path}: expected floating-point [rows, {'width' if ndim == 2 else 'tokens, width'}], found "
            f"{shard.dtype} {list(shard.shape)}: make it again"
        )
    return shard.view(np.ndarray)  # a batch looks into many shards, and numpy's own view of a file is slow to index


class ArrowStrings(Sequence):
    """Texts that stay in Arrow's memory, decoded when they are looked at: millions are cheap."""

    def __init__(self, texts: pa.Array):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | slice) -> Any:  # a text, or a list of them for a slice
        return self.texts[index].to_pylist() if isinstance(index, slice) else self.texts[int(index)].as_py()

    def __iter__(self) -> Iterator[str | None]:
        for start in range(0, len(self), 10_000):
            yield from self[start : start + 10_000]

    def take(self, index: np.ndarray) -> ArrowStrings:
        """The texts of these numbers."""
        return ArrowStrings(self.texts.take(pa.array(index)))


def read_folder(path: Path, tower: Tower = "image") -> Features:
    """Open a feature folder, ours or clip-retrieval's; embeddings are read on demand."""
    embeddings, files = open_shards(path, tower)
    metadata = pa.concat_tables(_metadata(embeddings, files), promote_options="permissive")
    features = _features(path, embeddings, metadata, 0, read_meta(path, embeddings))
    return features if tower == "text" else replace(features, tokens=open_tokens(path, embeddings, features.meta))


def read_texts(path: Path, embeddings: Rows, files: Sequence[Path], meta: FeatureMeta) -> Features:
    """Features of the metadata in `files`, for embeddings that lie elsewhere."""
    tables = map(read_metadata, files) if files else [pa.table({"row": pa.nulls(embeddings.shape[0])})]
    return _features(path, embeddings, pa.concat_tables(tables, promote_options="permissive"), 0, meta)


def read_shards(path: Path, tower: Tower = "image") -> Iterator[Features]:
    """As `read_folder`, shard by shard: memory holds the metadata of one shard at a time."""
    embeddings, files = open_shards(path, tower)
    meta = read_meta(path, embeddings)
    tokens = open_tokens(path, embeddings, meta) if tower == "image" else None
    of_shards = zip(embeddings.paths, embeddings.starts, _metadata(embeddings, files), strict=False)
    for number, (shard, start, metadata) in enumerate(of_shards):
        features = _features(path, ShardedRows([shard]), metadata, int(start), meta)
        own = ShardedRows([tokens.paths[number]], 3) if tokens else None
        yield replace(features, tokens=own)


def open_shards(path: Path, tower: Tower = "image") -> tuple[ShardedRows, list[Path]]:
    """(embeddings, metadata files of their shards: as many, or none)."""
    stem = STEMS[tower]
    shards, files = numbered(path, stem, "npy"), numbered(path, "metadata", "parquet")
    if not shards:
        texts = tower == "image" and (path / STEMS["text"]).is_dir()
        hint = "it holds texts alone (`clipcap train --objective text`)" if texts else "give a feature file"
        raise ClipcapError(
            f"{path}: no {stem}/{stem}_*.npy in it: {hint}, or parse the images first "
            f"(photos alone: `clipcap index` or `clipcap parse photos`)"
        )
    embeddings = ShardedRows(list(shards.values()))
    if not embeddings.shape[0]:
        raise ClipcapError(f"{path}: holds no images: parse them again")
    if files and (odd := sorted(shards.keys() ^ files.keys())):
        raise ClipcapError(
            f"{path}: shard {odd[0]} has embeddings or metadata, but not both: copy it whole or make it again"
        )
    return embeddings, list(files.values())


def open_tokens(path: Path, embeddings: ShardedRows, meta: FeatureMeta) -> ShardedRows | None:
    """The tokens beside the embeddings; None where the folder says that it has none.

    Raises:
        ClipcapError: they are missing, or not those of these embeddings or of this meta.
    """
    if meta.tokens is None:
        return None
    shards = numbered(path, TOKENS, "npy")
    wanted = [int(shard.stem.rpartition("_")[2]) for shard in embeddings.paths]
    if list(shards) != wanted:
        odd = min({*wanted} ^ {*shards})
        raise ClipcapError(f"{path}: shard {odd} has embeddings or tokens, but not both: copy it whole")
    tokens = ShardedRows(list(shards.values()), 3)
    for file, own, of_vectors in zip(tokens.paths, tokens.shards, embeddings.shards, strict=True):
        if len(own) != len(of_vectors):
            raise ClipcapError(
                f"{file}: has tokens of {len(own):,} images for {len(of_vectors):,} embeddings: copy or make it again"
            )
    if tokens.shape[1:] != (meta.tokens.count, meta.tokens.width):
        raise ClipcapError(
            f"{path}: its tokens are {' x '.join(map(str, tokens.shape[1:]))} an image, {META} says {meta.tokens}: "
            f"copy the folder again or parse the images again"
        )
    return tokens


def _features(path: Path, embeddings: Rows, metadata: pa.Table, start: int, meta: FeatureMeta) -> Features:
    """Rows and their metadata; `start` is the number of the first row in the folder."""
    captions, caption_rows = captions_in(metadata)
    pa.default_memory_pool().release_unused()  # reading Parquet takes several times what is kept
    paths = _first_column(metadata, PATHS, gaps=True) or [None] * len(metadata)
    return Features(embeddings, captions, caption_rows, row_ids(metadata, start), paths, meta, path)


def row_ids(metadata: pa.Table, start: int = 0) -> Sequence[str]:
    """What names the image of each row; their numbers, from `start` on, where nothing does."""
    return _first_column(metadata, IDS, gaps=False) or [f"row {start + row}" for row in range(len(metadata))]


def numbered(path: Path, stem: str, suffix: str) -> dict[int, Path]:
    """Files `stem/stem_NUMBER.suffix` by number: 10 comes after 9, however they are padded."""
    found = {}
    for file in (path / stem).glob(f"{stem}_*.{suffix}"):
        if number := re.fullmatch(rf"{stem}_(\d+)\.{suffix}", file.name):
            found[int(number[1])] = file
    return dict(sorted(found.items()))


def _metadata(embeddings: ShardedRows, files: Sequence[Path]) -> Iterator[pa.Table]:
    """The metadata of each shard; a table without texts where the folder has none."""
    for number, shard in enumerate(embeddings.shards):
        table = read_metadata(files[number]) if files else pa.table({"row": pa.nulls(len(shard))})
        if len(table) != len(shard):
            raise ClipcapError(
                f"{files[number]}: has {len(table):,} lines for {len(shard):,} embeddings: "
                "copy or make the shard again"
            )
        yield table


def read_metadata(file: Path, columns: Collection[str] = ALL_COLUMNS) -> pa.Table:
    """Of these columns those that matter, texts as large_string (a set of them can outgrow the 2 GB of string)."""
    pa.default_memory_pool().release_unused()  # of the shard before, or they add up
    try:
        there = pq.read_schema(file).names
        wanted = {*columns} - {"caption" if "captions" in there else "captions"}
        chosen = [name for name in there if name in wanted]
        table = pa.Table.from_batches(read_batches(file, chosen), _empty(file, chosen))
        lists = pa.large_list(pa.large_string())
        kinds = [(name, lists if name == "captions" else pa.large_string()) for name in table.column_names]
        return table.cast(pa.schema(kinds))
    except DAMAGED as error:
        raise unreadable(file, error) from error


def _empty(file: Path, columns: Sequence[str]) -> pa.Schema | None:
    """The schema of a table without rows; None where its batches tell it."""
    if pq.read_metadata(file).num_rows:
        return None
    schema = pq.read_schema(file)
    return pa.schema([schema.field(name) for name in columns])


def caption_texts(metadata: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """All captions, empty and null ones included, and the row of each, int64."""
    if "captions" in metadata.column_names:
        lists = metadata["captions"].combine_chunks()
        return pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
    if "caption" in metadata.column_names:
        return metadata["caption"].combine_chunks(), np.arange(len(metadata), dtype=np.int64)
    return pa.array([], pa.large_string()), np.empty(0, dtype=np.int64)


def captions_in(metadata: pa.Table) -> tuple[ArrowStrings, np.ndarray]:
    """The captions with text, and the row of each."""
    texts, rows = caption_texts(metadata)
    there = pc.greater(pc.fill_null(pc.binary_length(texts), 0), 0)
    return ArrowStrings(texts.filter(there)), rows[there.to_numpy(zero_copy_only=False)]


def _first_column(metadata: pa.Table, names: Sequence[str], gaps: bool) -> ArrowStrings | None:
    """The first of these columns that exists, with or without gaps."""
    for name in names:
        if name in metadata.column_names and (gaps or not metadata[name].null_count):
            return ArrowStrings(metadata[name].combine_chunks())
    return None


def read_meta(path: Path, embeddings: ShardedRows) -> FeatureMeta:
    """What the folder says of itself."""
    file = path / META
    if not file.exists():
        dtype = str(embeddings.dtype).removeprefix("torch.")
        return FeatureMeta(normalized=looks_normalized(embeddings), dtype=dtype)
    try:
        return FeatureMeta.from_file(json.loads(file.read_text(encoding="utf-8")), file)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ClipcapError):
            raise
        raise ClipcapError(f"{file}: is damaged ({error}): copy it again or parse the images again") from error
