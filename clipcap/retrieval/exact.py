"""Exact search over embeddings of any number, and how often a search finds what belongs together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features, Rows

BLOCK = 4096  # rows in memory at a time
QUERIES = 1024  # searched for, or ranked, at a time
PAIRS = 4096  # of query and row, computed in float64 at a time
BELOW = -2.0  # all cosines


class Vectors(NamedTuple):
    """Embeddings to search; of any norm."""

    rows: Rows  # [N, D]
    images: np.ndarray  # int64 [N], one number for all rows of an image
    scales: np.ndarray | None = None  # float32 [N], of `scales_of`; where None, as rows are read


class Hits(NamedTuple):
    """What was found: a line for each query and row, as columns of one length."""

    query: np.ndarray  # int64
    row: np.ndarray  # int64
    image: np.ndarray  # int64
    score: np.ndarray  # float32, the cosine


def search(features: Features, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest images of each query, by the cosine of their embeddings; exact, as `nearest`.

    Args:
        queries: [Q, D], of any norm.
        k: matches per query, fewer where there are fewer images.
    Returns:
        rows int64 [Q, K] and their cosines float32 [Q, K], best first.
    """
    hits = nearest([Vectors(features.embeddings, features.row_images)], unit(queries, features.dim, features.path), k)
    shape = len(queries), len(hits.row) // max(1, len(queries))
    return torch.from_numpy(hits.row.reshape(shape)), torch.from_numpy(hits.score.reshape(shape))


def unit(queries: Tensor, dim: int, where: object) -> Tensor:
    """Queries [Q, D] as float64 of norm 1, fit to be compared with the embeddings of `where`, which are `dim` wide.

    Raises:
        ClipcapError: they have another width, or one of them has no direction.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ClipcapError(
            f"{where}: embeddings are {dim} wide, the queries' {queries.shape[-1]}: "
            "search with the encoder of the features"
        )
    queries = queries.detach().cpu().double()
    norms = queries.norm(dim=1, keepdim=True)
    wrong = (~norms.isfinite() | (norms == 0)).flatten().nonzero().flatten().tolist()
    if wrong:
        raise ClipcapError(f"query {wrong[0]} has no direction (zeros, NaN or infinity): nothing is near it")
    return queries / norms


def scales_of(rows: Tensor) -> Tensor:
    """1 / L2 norm of each row, float32 [B]; 0 where a row has no direction: zeros, NaN, infinity."""
    scales = 1 / torch.linalg.vector_norm(rows, dim=1)
    return scales.where(scales.isfinite(), 0)


@torch.no_grad()
def nearest(parts: Sequence[Vectors], queries: Tensor, k: int) -> Hits:
    """The k nearest images of each query, by the cosine of their embeddings.

    Exact: every row is compared, a block at a time, so that embeddings on disk may be larger than memory. A block is
    compared in float32; what its rounding leaves in question is computed again in float64. So scores are float64
    cosines rounded to float32, the same whatever the blocks and threads. Equal scores stand in row order; several
    rows of one image count as one, the best; rows without a direction are never found.

    Args:
        parts: rows are numbered through all of them.
        queries: float64 [Q, D], from `unit`.
    Returns:
        hits by query, best first; k of each, or as many as there are images.
    """
    found = []
    for first in range(0, len(queries), QUERIES):
        hits = _scan(parts, queries[first : first + QUERIES], k)
        found.append(hits._replace(query=hits.query + first))
    return joined(found)


def _scan(parts: Sequence[Vectors], queries: Tensor, k: int) -> Hits:
    dim = queries.shape[1]
    slack = 3 * (dim + 8) * 2**-24  # twice what float32 can err by in a cosine
    narrow = queries.float()
    best, bar = _NONE, torch.full((len(queries),), BELOW)  # bar [Q]: the k-th best score so far
    for start, rows, images, scales in _blocks(parts, dim):
        scores = (narrow @ rows.T).mul_(scales)  # [Q, B]
        scores.masked_fill_(scales == 0, -torch.inf)
        query, column = _in_question(scores, images, bar - slack, k, slack)
        if not len(query):
            continue
        exact = cosines(queries, query, rows, column)
        hits = Hits(query.numpy(), start + column.numpy(), images[column.numpy()], exact)
        best, rank = ranked(joined([best, hits]), k)
        last = rank == k - 1
        bar[best.query[last]] = torch.from_numpy(best.score[last])
    return best


def _blocks(parts: Sequence[Vectors], dim: int) -> Iterator[tuple[int, Tensor, np.ndarray, Tensor]]:
    """(number of the first row, rows float32 [B, D], images [B], scales [B]); the next rows take the same memory."""
    memory = torch.empty(BLOCK, dim)
    start = 0
    for part in parts:
        count = part.rows.shape[0]
        for first in range(0, count, BLOCK):
            here = slice(first, min(first + BLOCK, count))
            rows = memory[: here.stop - first].copy_(part.rows[here])  # [B, D]
            scales = scales_of(rows) if part.scales is None else torch.tensor(part.scales[here])
            yield start + first, rows, part.images[here], scales
        start += count


def _in_question(scores: Tensor, images: np.ndarray, level: Tensor, k: int, slack: float) -> tuple[Tensor, Tensor]:
    """(query, column) of what may be among the k best images of a query: scores [Q, B] that reach its level [Q]."""
    busy = (scores.amax(dim=1) >= level).nonzero()[:, 0]  # few, once the best are found
    scores, level = scores[busy], level[busy]
    numbers, image_of = np.unique(images, return_inverse=True)
    by_image = scores  # [Q, I]
    if len(numbers) < len(images):
        by_image = scores.new_full((len(busy), len(numbers)), -torch.inf)
        by_image.scatter_reduce_(1, torch.from_numpy(image_of).expand_as(scores), scores, "amax")
    if len(busy) and k < len(numbers):
        level = level.maximum(by_image.topk(k, dim=1).values[:, -1] - slack)
    query, column = (scores >= level[:, None]).nonzero(as_tuple=True)
    return busy[query], column


def cosines(queries: Tensor, query: Tensor, rows: Tensor, column: Tensor) -> np.ndarray:
    """The cosines of pairs of query [P] and row [P], computed in float64: float32 [P]."""
    found = np.empty(len(query), np.float32)
    for pairs in (slice(first, first + PAIRS) for first in range(0, len(query), PAIRS)):
        chosen = rows[column[pairs]].double()  # [P, D]
        found[pairs] = (chosen * queries[query[pairs]]).sum(dim=1) / chosen.norm(dim=1)
    return found


def rescore(parts: Sequence[Vectors], queries: Tensor, query: np.ndarray, row: np.ndarray, k: int) -> Hits:
    """As `nearest`, but of these pairs of query [P] and row [P] alone."""
    rows, column = np.unique(row, return_inverse=True)
    vectors, images = gather_rows(parts, rows)
    score = cosines(queries, torch.from_numpy(query), vectors, torch.from_numpy(column))
    good = np.isfinite(score)
    return ranked(Hits(query[good], row[good], images[column[good]], score[good]), k)[0]


def gather_rows(parts: Sequence[Vectors], rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """(embeddings float32 [R, D], images [R]) of rows in ascending order, numbered through all parts."""
    ends = np.cumsum([len(part.images) for part in parts])
    shares = np.split(rows, np.searchsorted(rows, ends[:-1]))
    below = [share - (end - len(part.images)) for share, end, part in zip(shares, ends, parts)]
    vectors = [part.rows[torch.from_numpy(share)].float() for share, part in zip(below, parts)]
    return torch.cat(vectors), np.concatenate([part.images[share] for share, part in zip(below, parts)])


def ranked(hits: Hits, k: int) -> tuple[Hits, np.ndarray]:
    """(the best k images of each query, best first, each by its best row; the rank of each from 0)."""
    _, image = np.unique(hits.image, return_inverse=True)
    order = np.lexsort((hits.row, -hits.score, hits.query))
    pair = (hits.query * (image.max(initial=0) + 1) + image)[order]  # a number for each query and image
    order = order[np.sort(np.unique(pair, return_index=True)[1])]
    query = hits.query[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    kept = rank < k
    return Hits(*(column[order[kept]] for column in hits)), rank[kept]


def joined(hits: Sequence[Hits]) -> Hits:
    """All of them as one."""
    return Hits(*map(np.concatenate, zip(_NONE, *hits)))


_NONE = Hits(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.int64, np.float32)))
