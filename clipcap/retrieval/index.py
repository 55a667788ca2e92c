"""A nearest-neighbour index: opened from an index folder, from features, or from clip-retrieval's faiss index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import FeatureMeta, Features
from clipcap.features.files import read_features
from clipcap.features.folder import read_texts
from clipcap.models.encoders.names import guess_encoder
from clipcap.retrieval.config import Tower
from clipcap.retrieval.entries import Catalogue, FeatureCatalogue, StoredCatalogue
from clipcap.retrieval.exact import Hits, Vectors, gather_rows, nearest, unit
from clipcap.retrieval.faiss_index import Foreign, Rescored, read_faiss
from clipcap.retrieval.parts import AGAIN, open_part
from clipcap.runtime.files import current_path
from clipcap.runtime.safe_load.parquet import read_footer

FORMAT_VERSION = 1
CONFIG = "index.json"


@dataclass(frozen=True)
class Match:
    """An image that a search found."""

    image_id: str
    caption: str  # the first of its row; empty where it has none
    path: str | None
    score: float  # cosine
    row: int  # of the index
    probability: float | None = None  # of the image among those shown, where it was asked for


class Approximate(Protocol):
    """A search that does not compare every row."""

    def hits(self, queries: Tensor, k: int) -> Hits:
        """As `clipcap.retrieval.exact.nearest`, as far as it finds it; queries float64 [Q, D], of norm 1."""
        ...


@dataclass(frozen=True, eq=False)
class Index:
    """Embeddings to search, and the entries of their rows."""

    path: Path
    meta: FeatureMeta  # of their encoder
    kind: str  # exact, ivf, hnsw, or faiss: one that was made elsewhere
    parts: Sequence[Vectors]
    catalogue: Catalogue
    approximate: Approximate | None = None

    @classmethod
    def open(cls, path: str | Path, encoder: str | None = None, tower: Tower = "image") -> Index:
        """Open an index folder, features, or a folder of clip-retrieval with its `image.index` or `text.index`.

        Args:
            encoder: of features and of faiss indexes that do not say it.
            tower: of a folder of clip-retrieval, which may hold embeddings of both.
        Raises:
            ClipcapError: missing, truncated, damaged, or nothing of the kind.
        """
        place = current_path(Path(path))
        if (place / CONFIG).exists():
            index = _open_stored(place)
        elif (place / f"{tower}.index").exists():
            index = _open_foreign(place, place / f"{tower}.index")
        else:
            index = cls.of(read_features(path, tower=tower))
        meta = index.meta
        if encoder and (meta.encoder_guessed or not meta.encoder):
            meta = replace(meta, encoder=encoder, encoder_guessed=False)
        return replace(index, meta=meta, path=Path(path))

    @classmethod
    def of(cls, features: Features) -> Index:
        """Features, to be searched as they are."""
        vectors = Vectors(features.embeddings, features.row_images)
        return cls(features.path, features.meta, "exact", [vectors], FeatureCatalogue(features))

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return int(self.parts[0].rows.shape[1])

    def __len__(self) -> int:
        return sum(len(part.images) for part in self.parts)

    def search(self, queries: Tensor, k: int, exact: bool = False) -> list[list[Match]]:
        """The nearest images of each query, by cosine.

        Args:
            queries: [Q, D], of any norm and floating-point type.
            k: matches per query, fewer where there are fewer images.
            exact: compare every row, also where the index is approximate.
        Returns:
            Q lists, best first.
        Raises:
            ClipcapError: the queries have another width or no direction.
        """
        found: list[list[Match]] = [[] for _ in queries]
        hits = self.hits(queries, k, exact)
        for query, row, score in zip(hits.query.tolist(), hits.row.tolist(), hits.score.tolist()):
            entry = self.catalogue.entry(row)
            found[query].append(Match(entry.image_id, next(iter(entry.captions), ""), entry.path, score, row))
        return found

    def hits(self, queries: Tensor, k: int, exact: bool = False) -> Hits:
        """As `search`, as rows."""
        queries = unit(queries, self.dim, self.path)
        if self.approximate and not exact:
            return self.approximate.hits(queries, k)
        return nearest(self.parts, queries, k)

    def embedding(self, image_id: str) -> Tensor:
        """The first embedding of an image, float32 [D].

        Raises:
            ClipcapError: no such image, or an index that holds no embeddings.
        """
        row = self.catalogue.row_of(image_id)
        if row is None:
            raise ClipcapError(f"{self.path}: has no image {image_id!r}: the table of a search shows image ids")
        return gather_rows(self.parts, np.array([row]))[0][0]

    def check_encoder(self, encoder: str | None, weights_id: str | None, dim: int, what: str) -> None:
        """Refuse queries of another encoder than the index was made with.

        Args:
            encoder: of `what` (for example "this search"), with its weights' fingerprint and its width.
        Raises:
            ClipcapError: says both sides.
        """
        check_same_encoder(self.meta, self.dim, encoder, weights_id, dim, self.path, what)


def read_config(place: Path) -> dict[str, Any]:
    """What an index folder says of itself."""
    path = place / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format_version"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ClipcapError(f"{path}: is damaged, or no index of clipcap: {AGAIN}") from error
    if version != FORMAT_VERSION:
        raise ClipcapError(
            f"{path}: is of index format {version}, this clipcap knows {FORMAT_VERSION}: update clipcap"
        )
    return config


def _open_stored(place: Path) -> Index:
    config = read_config(place)
    meta = FeatureMeta.from_file(config.get("meta"), place / CONFIG)
    try:
        kind, images, probe = config["kind"], int(config["images"]), int(config["probe"])
        sizes = [(int(part["rows"]), int(part["captions"])) for part in config["parts"]]
        if kind not in ("exact", "ivf", "hnsw") or not sizes:
            raise ValueError(kind)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ClipcapError(f"{place / CONFIG}: is damaged: {AGAIN}") from error
    folders = [place / f"part_{number}" for number in range(len(sizes))]
    opened = [open_part(folder, rows) for folder, (rows, _) in zip(folders, sizes)]
    parts, tables = [part for part, _ in opened], [table for _, table in opened]
    if len({part.rows.shape[1] for part in parts}) > 1:
        raise ClipcapError(f"{place}: its parts are not of one width: {AGAIN}")
    catalogue = StoredCatalogue(tables, [captions for _, captions in sizes], [part.images for part in parts])
    approximate = None
    if kind in ("ivf", "hnsw"):
        approximate = Rescored(kind, [folder / "near.index" for folder in folders], parts, images, probe)
    return Index(place, meta, kind, parts, catalogue, approximate)


@dataclass(frozen=True)
class _Unstored:
    """In place of the embeddings that a faiss index was made of."""

    shape: tuple[int, int]
    path: Path
    dtype: torch.dtype = torch.float32

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        raise ClipcapError(
            f"{self.path}: holds no embeddings, only what faiss made of them: index the features with `clipcap index`"
        )


def _open_foreign(place: Path, file: Path) -> Index:
    """A faiss index of clip-retrieval, with the metadata beside it."""
    index = read_faiss(file)
    tables = sorted((place / "metadata").glob("*.parquet"))  # the order of clip-retrieval
    lines = sum(read_footer(table).num_rows for table in tables) if tables else index.ntotal
    if lines != index.ntotal:
        raise ClipcapError(f"{place}: has {lines:,} lines of metadata for {index.ntotal:,} embeddings: {AGAIN}")
    encoder = guess_encoder(index.d)
    meta = FeatureMeta(encoder=encoder, encoder_guessed=encoder is not None)
    features = read_texts(place, _Unstored((index.ntotal, index.d), file), tables, meta)
    return replace(Index.of(features), kind="faiss", approximate=Foreign(index, file, features.row_images))
