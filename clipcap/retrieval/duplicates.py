"""Pictures of an index that are nearly the same: groups whose embeddings have a cosine near 1."""

from __future__ import annotations

import numpy as np
import torch

from clipcap.retrieval.exact import gather_rows, scales_of
from clipcap.retrieval.index import Index
from clipcap.runtime.text import counted, printable

BLOCK = 1024  # rows searched for at a time
NEAREST = 20  # neighbours compared with each


def near_duplicates(index: Index, cosine: float) -> list[tuple[float, list[str]]]:
    """Groups of images that hang together by pairs of at least this cosine.

    Returns:
        the least cosine of the pairs that link a group, and its image ids; the most alike first.
    """
    leader: dict[int, int] = {}  # of an image by its number, another of its group
    names: dict[int, str] = {}
    least: dict[int, float] = {}

    def find(image: int) -> int:
        while leader.setdefault(image, image) != image:
            image = leader[image]
        return image

    for first in range(0, len(index), BLOCK):
        rows, images = gather_rows(index.parts, np.arange(first, min(first + BLOCK, len(index))))
        good = torch.nonzero(scales_of(rows.float()) > 0).flatten()
        hits = index.hits(rows[good], NEAREST, exact=True)
        for query, row, image, score in zip(
            hits.query.tolist(), hits.row.tolist(), hits.image.tolist(), hits.score.tolist(), strict=True
        ):
            own = int(images[good[query]])
            if image == own or score < cosine:
                continue
            names[own] = index.catalogue.entry(first + int(good[query])).image_id
            names[image] = index.catalogue.entry(row).image_id
            a, b = find(own), find(image)
            low = min(least.get(a, 1.0), least.get(b, 1.0), score)
            leader[b] = a
            least[a] = low
    groups: dict[int, list[str]] = {}
    for image, name in names.items():
        groups.setdefault(find(image), []).append(name)
    return sorted(((least[top], members) for top, members in groups.items()), key=lambda group: -group[0])


def describe(groups: list[tuple[float, list[str]]], cosine: float) -> str:
    """A line for each group, after a line that counts them."""
    more = sum(len(members) - 1 for _, members in groups)
    if not groups:
        return f"no near-duplicates (cosine {cosine:g} and more)"
    found = f"{counted(len(groups), 'group')} of near-duplicates (cosine {cosine:g} and more)"
    lines = [f"{found}, {counted(more, 'photo')} too many"]
    return "\n".join(lines + [f"{score:.3f}  " + "  ".join(map(printable, members)) for score, members in groups])
