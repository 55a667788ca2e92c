"""Feature file → tokenised, length-bucketed batches, the same whatever the number of processes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.models.base import IGNORE
from clipcap.models.given import Given
from clipcap.runtime.disk_arrays import blocks
from clipcap.training.batch_order import BatchOrder
from clipcap.training.tokens import TokenRecipe, tokenise

T = TypeVar("T")
ROWS, COLUMNS = 4, 8  # multiples that batches are rounded up to


@dataclass
class Batch:
    """Captions and their images' embeddings: one micro-batch of one process.

    A row is a caption, or several captions of one image end to end (`clipcap.models.kernels.shared_prefix`).
    """

    given: Given  # of B rows
    input_ids: Tensor  # [B, T]
    labels: Tensor  # [B, T], IGNORE where there is nothing to learn
    positions: Tensor | None  # [B, T], each token's place in its caption, where a row holds several
    captions: np.ndarray  # [n] numbers of the captions
    row_of: np.ndarray  # [n] the row of each
    weights: Tensor | None = None  # [B, T] float32, of each label token's cross-entropy; None: 1
    most_columns: int | None = None  # that the language model has positions for, where a row is a caption

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """What the model's forward takes."""
        names = ("given", "input_ids", "labels", "positions", "weights")
        parts = {name: getattr(self, name) for name in names}
        return {name: p.to(device, non_blocking=True) for name, p in parts.items() if p is not None}

    def rounded(self) -> Batch:
        """The same loss in one of few shapes: rows and columns that count nothing are added."""
        rows, columns = self.labels.shape
        wider = -columns % COLUMNS
        if self.positions is None and self.most_columns is not None:  # elsewhere positions begin anew
            wider = max(0, min(wider, self.most_columns - columns))
        more = (0, wider, 0, -rows % ROWS)
        own = torch.arange(rows + more[3]) % rows  # added rows are of the first images
        weights = self.weights if self.weights is None else F.pad(self.weights, more)
        return replace(
            self,
            given=self.given[own],
            input_ids=F.pad(self.input_ids, more),
            labels=F.pad(self.labels, more, value=IGNORE),
            positions=None if self.positions is None else F.pad(self.positions, more),
            weights=weights,
        )


@dataclass(frozen=True)
class Layout:
    """Where n captions stand in the rows of a batch, those of a row end to end.

    Args:
        first: bool [n], which captions begin a row.
        lengths: int64 [n], their tokens.
    """

    first: np.ndarray
    lengths: np.ndarray

    @cached_property
    def row_of(self) -> np.ndarray:
        """The row of each caption, int64 [n]."""
        return self.first.cumsum() - 1

    @cached_property
    def offsets(self) -> np.ndarray:
        """The column of each caption's first token, int64 [n]."""
        begins = self.lengths.cumsum() - self.lengths  # of the captions' tokens, all end to end
        return begins - begins[self.first][self.row_of]

    @cached_property
    def position(self) -> np.ndarray:
        """Of each token its place in its caption, int64 [tokens]."""
        return np.arange(self.lengths.sum()) - np.repeat(self.lengths.cumsum() - self.lengths, self.lengths)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the batch: the longest row decides."""
        return int(self.row_of[-1]) + 1, max(1, int((self.offsets + self.lengths).max()))

    def fill(self, values: np.ndarray, padding: float) -> np.ndarray:
        """A value per token, [tokens] → [B, T]."""
        found = np.full(self.shape, padding, values.dtype)
        found[np.repeat(self.row_of, self.lengths), np.repeat(self.offsets, self.lengths) + self.position] = values
        return found

    def batch(self, given: Given, tokens: np.ndarray, captions: np.ndarray) -> Batch:
        """The batch of these captions.

        Args:
            given: of each of the B rows.
            tokens: [tokens], of all captions end to end.
            captions: [n] their numbers.
        """
        tokens = tokens.astype(np.int64)
        ids, labels, positions = self.fill(tokens, 0), self.fill(tokens, IGNORE), self.fill(self.position, 0)
        ids, labels, positions = map(torch.from_numpy, (ids, labels, positions))
        positions = None if self.first.all() else positions
        return Batch(given, ids, labels, positions, captions, self.row_of)


@dataclass
class CaptionDataset:
    """Tokenised captions over a feature file.

    Args:
        features: embeddings and captions.
        tokenizer: of the language model.
        max_tokens: captions are cut to this many tokens, the end-of-text token included.
        reference: the original's labels: no end-of-text token, id 0 (`!`) never learnt, captions cut to mean + 10
            standard deviations of the set.
        share_prefix: captions of one image stand in one row of a batch, behind one prefix.
    """

    features: Features
    tokenizer: Tokenizer
    max_tokens: int
    reference: bool = False
    share_prefix: bool = False
    truncated: int = field(init=False)
    tokens: np.ndarray = field(init=False)  # uint16 or int32, all captions one after the other
    starts: np.ndarray = field(init=False)  # int64 [M + 1]
    order: BatchOrder = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.features.captions):
            raise ClipcapError(f"{self.features.path}: holds no captions to train on")
        found = tokenise(self.features.captions, TokenRecipe(self.tokenizer, self.max_tokens, self.reference))
        self.tokens, self.starts, self.truncated = found.tokens, found.starts, found.truncated
        self.order = BatchOrder(self.starts, self.features if self.share_prefix else None)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each caption, [M]: all in memory."""
        return np.diff(self.starts)

    @property
    def shares(self) -> bool:
        """Whether any captions share a prefix."""
        return self.order.shares

    def checksum(self) -> int:
        """Of all tokens and their captions' lengths."""
        found = 0
        for values, dtype in ((self.starts, np.int64), (self.tokens, np.int32)):
            for block in blocks(len(values)):
                found = zlib.crc32(values[block].astype(dtype, copy=False).data, found)
        return found

    def batch(self, captions: np.ndarray) -> Batch:
        """The batch of the captions of these numbers; rows are padded to the longest of them."""
        layout = self.layout(captions)
        tokens = self.tokens[np.repeat(self.starts[captions], layout.lengths) + layout.position]
        given = self.features.given(self.features.caption_rows[captions[layout.first]])
        batch = layout.batch(given, tokens, captions)
        batch.most_columns = self.max_tokens
        if self.reference:
            batch.labels[batch.input_ids == 0] = IGNORE
        return batch

    def reworded(self, batch: Batch, texts: dict[int, str]) -> Batch:
        """The batch with other texts in place of some of its captions, by their place in the batch."""
        tokens = [self.tokens[self.starts[number] : self.starts[number + 1]] for number in batch.captions]
        recipe = TokenRecipe(self.tokenizer, self.max_tokens, self.reference)
        for place, ids in zip(texts, recipe.ids(list(texts.values()))):
            tokens[place] = np.array(ids[: self.max_tokens], tokens[place].dtype)
        layout = Layout(np.diff(batch.row_of, prepend=-1) != 0, np.array([len(ids) for ids in tokens]))
        found = layout.batch(batch.given, np.concatenate(tokens), batch.captions)
        found.most_columns = batch.most_columns
        return found

    def layout(self, captions: np.ndarray) -> Layout:
        """Where the captions of these numbers stand in their batch."""
        return Layout(self.order.begins_row(captions), self.order.lengths(captions))

    def steps(self, size: int, epoch: int, seed: int) -> Iterator[np.ndarray]:
        """One epoch as the captions of each optimiser step, in training order.

        Depends on (size, epoch, seed) alone. By default captions of similar length share a step; the original
        shuffles freely and drops the last, incomplete step.
        """
        if self.reference:
            return self.order.freely(size, np.random.default_rng((seed, epoch)))
        return self.order.bucketed(size, (seed, epoch))

    def count_steps(self, size: int) -> int:
        """Steps of an epoch, whichever it is."""
        return self.order.count_freely(size) if self.reference else self.order.count_bucketed(size)

    def validation_steps(self, size: int) -> Iterator[np.ndarray]:
        """All captions, unshuffled."""
        return self.order.bucketed(size, None)

    def windows(self, size: int, epoch: int, seed: int, parts: BatchShare, skip: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""
        for captions in islice(self.steps(size, epoch, seed), skip, None):
            yield self.window(captions, parts)

    def window(self, captions: np.ndarray, parts: BatchShare) -> list[Batch]:
        """This process's share of some captions; an empty share becomes a caption of weight 0."""
        return [self.batch(mine) if len(mine) else self._idle(captions) for mine in parts.of(captions)]

    def _idle(self, captions: np.ndarray) -> Batch:
        idle = self.batch(captions[:1])
        idle.labels.fill_(IGNORE)
        return idle


@dataclass(frozen=True)
class BatchShare:
    """How a global batch is shared out: over processes, and over micro-batches of `micro` captions each."""

    rank: int
    world: int
    micro: int

    def chunks(self, captions: int) -> int:
        """Micro-batches that a step of this many captions takes."""
        return -(-captions // (self.micro * self.world))

    def of(self, captions: np.ndarray) -> list[np.ndarray]:
        """The captions of each of this process's micro-batches, neighbours together; some may be empty."""
        return np.array_split(captions, self.chunks(len(captions)) * self.world)[self.rank :: self.world]


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The items, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
