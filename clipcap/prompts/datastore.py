"""Captions to retrieve: those of similar images, or texts that fit an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.features.files import find_features
from clipcap.retrieval.caption_features import holds_texts
from clipcap.retrieval.entries import Entry
from clipcap.retrieval.exact import gather_rows
from clipcap.retrieval.index import CONFIG, Index, read_config
from clipcap.runtime.files import current_path

SAME = 0.999  # cosine above which an image is the image itself
SPARE = 8  # further images searched for, in place of those that are left out
SAMPLED = 64  # rows that tell one datastore from another


class Retrieved(NamedTuple):
    """A caption that was retrieved for an image, or a word that fits it."""

    caption: str
    image_id: str
    path: str | None
    score: float  # cosine of the two embeddings, or the probability of the word

    @property
    def is_word(self) -> bool:
        """Whether it is a word of a list, which no image stands behind."""
        return not self.image_id


class Near(NamedTuple):
    """The nearest rows of a datastore, best first; -1 where there are fewer."""

    rows: np.ndarray  # int32 [Q, K]
    scores: np.ndarray  # float32 [Q, K], cosines


@dataclass(frozen=True, eq=False)
class Datastore:
    """Captions by the embeddings of their images, or by their own.

    Attributes:
        index: what is searched.
        tower: of which its embeddings are.
    """

    index: Index
    tower: Literal["image", "text"]

    @classmethod
    def open(cls, path: str | Path, encoder: str | None, weights_id: str | None, dim: int, what: str) -> Datastore:
        """Open features with captions, an index of them, or a folder of texts.

        Args:
            path: where it lies.
            encoder: of the queries, with its weights' fingerprint and its width.
            what: searches it, for messages.
        Raises:
            ClipcapError: nothing of the kind, another encoder's, or no captions.
        """
        tower = _tower(path)
        store = cls(Index.open(path, tower=tower), tower)
        store.index.check_encoder(encoder, weights_id, dim, what)
        if not store.some_captions():
            raise ClipcapError(f"--datastore {path}: holds no captions: parse the images with theirs")
        return store

    def entry(self, row: int) -> Entry:
        """Image id, path and captions of a row."""
        return self.index.catalogue.entry(row)

    def near(self, queries: Tensor, k: int, own: Sequence[Sequence[str]] | None = None) -> Near:
        """The nearest images of each query, without the image itself.

        An image of a cosine above 0.999 is left out with all its captions. In a datastore of texts no cosine tells:
        there what has one of the image's `own` captions is left out. Nothing is near a query of zeros.

        Args:
            queries: [Q, D], of any norm.
            k: images of each.
            own: captions of each of the Q images, in training.
        """
        directed = queries.detach().cpu().any(dim=1).nonzero().flatten()
        rows = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -1, np.float32)
        if not len(directed):
            return Near(rows, scores)
        hits = self.index.hits(queries[directed], k + SPARE)
        filled = [0] * len(queries)
        known = None if own is None or self.tower == "image" else [{*map(_plain, several)} for several in own]
        for query, row, score in zip(directed[hits.query].tolist(), hits.row.tolist(), hits.score.tolist()):
            place = filled[query]
            if place == k or (self.tower == "image" and score > SAME):
                continue
            if known and any(_plain(text) in known[query] for text in self.entry(row).captions):
                continue
            rows[query, place], scores[query, place] = row, score
            filled[query] += 1
        return Near(rows, scores)

    def retrieved(self, row: int, score: float, choice: int = 0) -> Retrieved | None:
        """A caption of a row: the first, or the one of another number; None where it has none."""
        entry = self.entry(row)
        if not entry.captions:
            return None
        return Retrieved(entry.captions[choice % len(entry.captions)], entry.image_id, entry.path, score)

    def fingerprint(self) -> str:
        """Tells this datastore from others, wherever it lies: encoder, size, and a sample of rows and captions."""
        rows = np.unique(np.linspace(0, len(self.index) - 1, SAMPLED, dtype=np.int64))
        meta = self.index.meta
        digest = hashlib.blake2b(
            repr((meta.encoder_weights_id, len(self.index), self.index.dim)).encode(), digest_size=8
        )
        try:
            digest.update(gather_rows(self.index.parts, rows)[0].numpy().tobytes())
        except ClipcapError:  # a faiss index of clip-retrieval, which holds no embeddings
            digest.update(b"no embeddings")
        for row in rows.tolist():
            digest.update(repr(self.entry(row).captions).encode())
        return digest.hexdigest()

    def some_captions(self, count: int = 2000) -> list[str]:
        """Captions spread over the datastore."""
        rows = np.unique(np.linspace(0, len(self.index) - 1, count, dtype=np.int64))
        return [caption for row in rows.tolist() for caption in self.entry(row).captions]


def _tower(path: str | Path) -> Literal["image", "text"]:
    place = current_path(Path(path))
    if (place / CONFIG).exists():
        return "text" if read_config(place).get("tower") == "text" else "image"
    if (place / "image.index").exists() or not (place / "text.index").exists():
        pictures = (place / "img_emb").is_dir() or (place / "image.index").exists()
        return "text" if not pictures and holds_texts(find_features(path)) else "image"
    return "text"


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .")
