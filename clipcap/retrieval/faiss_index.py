"""Approximate search by faiss: our indexes, whose finds are compared exactly afterwards, and clip-retrieval's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.retrieval.exact import Hits, Vectors, gather_rows, joined, ranked, rescore, scales_of

Kind = Literal["ivf", "hnsw"]
PER_LIST = 40  # rows of the sample for each list: faiss asks for 39
ADDED = 16_384  # rows added at a time
TOGETHER = 64  # queries whose finds are compared at a time
SPARE = 4  # found for each match that is wanted: the codes are coarse, and images have several rows


def load_faiss() -> Any:
    """The faiss package, with as many threads as torch has.

    Raises:
        ClipcapError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ClipcapError(
            "an approximate index needs the faiss package: pip install 'clipcap-toolkit[retrieval]', or build it "
            "with --kind exact, or search with --exact"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def sample_size(rows: int) -> int:
    """How many rows an IVF index is trained on."""
    return min(rows, PER_LIST * _lists(rows))


def _lists(rows: int) -> int:
    return max(1, int(2 * math.sqrt(rows)))


def trained(kind: Kind, sample: Tensor, rows: int) -> Any:
    """An empty faiss index for `rows` rows: 8 bits per number, in lists around centroids (ivf) or as a graph (hnsw).

    Args:
        sample: float32 [S, D], of norm 1.
    """
    faiss = load_faiss()
    lists = max(1, min(_lists(rows), len(sample) // PER_LIST))
    recipe = {"ivf": f"IVF{lists},SQ8", "hnsw": "HNSW32,SQ8"}[kind]
    index = faiss.index_factory(sample.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
    if kind == "ivf":
        index.cp.min_points_per_centroid = 1  # of small sets it would warn on stderr
    index.train(sample.numpy())
    return index


def add_rows(index: Any, vectors: Vectors) -> Iterator[int]:
    """Add all rows, block by block; yields how many of them at a time."""
    for first in range(0, len(vectors.images), ADDED):
        rows = vectors.rows[first : first + ADDED].float()  # [B, D]
        scales = scales_of(rows)[:, None]
        index.add((rows * scales).where(scales > 0, 0).numpy())  # a row without a direction keeps its number
        yield len(rows)


def write_faiss(index: Any, path: Path) -> None:
    """Write an index file.

    By Python: what faiss writes itself on closing the file may be lost on a full disk, with a line on stderr alone.

    Raises:
        OSError: the disk is full, or the place cannot be written.
    """
    faiss = load_faiss()
    with open(path, "wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read_faiss(path: Path, mapped: bool = True) -> Any:
    """Open an index file, or clip-retrieval's folder of one; `mapped` ones are read from disk as they are searched.

    Raises:
        ClipcapError: faiss is not installed; truncated, or no index.
    """
    faiss = load_faiss()
    flags = faiss.IO_FLAG_MMAP_IFC if mapped else 0
    if path.is_dir():
        path, flags = path / "populated.index", faiss.IO_FLAG_ONDISK_SAME_DIR
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ClipcapError(f"{path}: truncated, or not an index of faiss: copy or build it again") from error


class Rescored:
    """Search of one of our approximate indexes: faiss names rows, their cosines are computed from the embeddings."""

    def __init__(self, kind: Kind, files: Sequence[Path], parts: Sequence[Vectors], images: int, probe: int):
        self.kind, self.files, self.parts, self.images = kind, files, parts, images
        self.probe = probe  # how far it looks: lists of an IVF, candidates of an HNSW
        self.rows = sum(len(part.images) for part in parts)

    @cached_property
    def _indexes(self) -> list[Any]:
        indexes = [read_faiss(path) for path in self.files]
        for path, index, part in zip(self.files, indexes, self.parts):
            if (index.ntotal, index.d) != tuple(part.rows.shape):
                raise ClipcapError(f"{path}: is of other rows than lie beside it: copy or build the index again")
        return indexes

    def probes(self) -> Iterator[int]:
        """Values of `probe` to choose from, each looking about twice as far as the one before."""
        first, last = (1, self._indexes[0].nlist) if self.kind == "ivf" else (64, self.rows)
        while first < last:
            yield first
            first *= 2
        yield last

    def hits(self, queries: Tensor, k: int) -> Hits:
        """As `nearest`, but the rows that faiss names are all that is compared."""
        found = []
        for first in range(0, len(queries), TOGETHER):
            some = queries[first : first + TOGETHER]

            def find(wanted: int, some: Tensor = some) -> Hits:
                return rescore(self.parts, some, *self._named(some, wanted), k)

            hits = _enough(find, len(some), k, self.images, self.rows)
            found.append(hits._replace(query=hits.query + first))
        return joined(found)

    def _named(self, queries: Tensor, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of query and row that faiss holds for near."""
        faiss = load_faiss()
        if self.kind == "ivf":
            params = faiss.SearchParametersIVF(nprobe=self.probe)
        else:
            params = faiss.SearchParametersHNSW(efSearch=max(self.probe, wanted))
        named, start = [], 0
        for index in self._indexes:
            _, rows = index.search(queries.float().numpy(), min(wanted, index.ntotal), params=params)  # [Q, W]
            query, place = np.nonzero(rows >= 0)
            named.append((query, start + rows[query, place]))
            start += index.ntotal
        query, row = map(np.concatenate, zip(*named))
        return query, row


class Foreign:
    """Search of a faiss index of clip-retrieval, as it is set up; scores are what it says."""

    def __init__(self, index: Any, path: Path, images: np.ndarray):
        faiss = load_faiss()
        if index.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
            raise ClipcapError(f"{path}: measures by neither inner product nor L2 distance: build it again with one")
        self.index, self.images = index, images
        self.squared = index.metric_type == faiss.METRIC_L2

    def hits(self, queries: Tensor, k: int) -> Hits:
        """As `nearest`, as far as the index finds it."""

        def find(wanted: int) -> Hits:
            scores, rows = self.index.search(queries.float().numpy(), wanted)  # [Q, W]
            query, place = np.nonzero(rows >= 0)
            row, score = rows[query, place], scores[query, place]
            score = 1 - score / 2 if self.squared else score  # a squared distance of unit vectors, as a cosine
            return ranked(Hits(query, row, self.images[row], score), k)[0]

        return _enough(find, len(queries), k, len(np.unique(self.images)), len(self.images))


def _enough(find: Callable[[int], Hits], queries: int, k: int, images: int, rows: int) -> Hits:
    """Hits of k images for each query, where more rows hold them."""
    wanted = min(rows, SPARE * k * math.ceil(rows / images))
    while True:
        hits = find(wanted)
        if wanted == rows or len(hits.query) == queries * min(k, images):
            return hits
        wanted = min(rows, 4 * wanted)


def sample_of(parts: Sequence[Vectors], size: int, seed: int = 0) -> Tensor:
    """Rows chosen at random, of norm 1: float32 [S, D]; those without a direction left out."""
    rows = sum(len(part.images) for part in parts)
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(size, rows), replace=False))
    sample, _ = gather_rows(parts, chosen)
    scales = scales_of(sample)
    return (sample * scales[:, None])[scales > 0]
