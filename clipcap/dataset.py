"""Feature file → tokenised, length-bucketed batches, the same whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.errors import ClipcapError
from clipcap.features import Features

T = TypeVar("T")
IGNORE = -100  # label of positions that count for nothing, as in torch
POOL_STEPS = 64  # optimiser steps whose captions are sorted by length together
ROWS_TOGETHER = 8192  # embeddings read at a time
MOST_TOGETHER = 8  # captions behind one prefix; attention's arithmetic grows with the square of their number


@dataclass
class Batch:
    """Captions and their images' embeddings: one micro-batch of one process.

    A row is a caption, or several captions of one image end to end (`clipcap.shared_prefix`).
    """

    clip_embedding: Tensor  # [B, D] float32
    input_ids: Tensor  # [B, T]
    labels: Tensor  # [B, T], IGNORE where there is nothing to learn
    positions: Tensor | None  # [B, T], each token's place in its caption, where a row holds several
    captions: np.ndarray  # [n] numbers of the captions
    row_of: np.ndarray  # [n] the row of each

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What the model's forward takes."""
        tensors = {name: getattr(self, name) for name in ("clip_embedding", "input_ids", "labels", "positions")}
        return {name: t.to(device, non_blocking=True) for name, t in tensors.items() if t is not None}


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
    truncated: int = field(init=False, default=0)
    tokens: np.ndarray = field(init=False)  # int32, all captions one after the other
    starts: np.ndarray = field(init=False)  # int64 [M + 1]
    leader: np.ndarray = field(init=False)  # int64 [M], the first caption of those that share each one's row

    def __post_init__(self) -> None:
        if not len(self.features.captions):
            raise ClipcapError(f"{self.features.path}: holds no captions to train on")
        tokens, counts = self._tokenise()
        longest = self.max_tokens
        if self.reference:
            longest = min(longest, reference_max_length(counts))
        self.truncated = int(np.count_nonzero(counts > longest))
        if self.truncated:  # a cut caption loses its end-of-text token: it did not end there
            position = np.arange(len(tokens)) - np.repeat(counts.cumsum() - counts, counts)
            tokens, counts = tokens[position < longest], counts.clip(max=longest)
        self.tokens = tokens
        self.starts = np.concatenate([[0], counts.cumsum()])
        self.leader = shared_rows(self.features) if self.share_prefix else np.arange(len(self))

    def _tokenise(self) -> tuple[np.ndarray, np.ndarray]:
        """All captions' tokens one after the other, int32, and the count of each, int64 [M]."""
        end = [] if self.reference else [self.tokenizer.eos_token_id]
        tokens, counts = [], []
        for start in tqdm(range(0, len(self), 10_000), desc="tokenising", leave=False, disable=len(self) < 50_000):
            texts = list(self.features.captions[start : start + 10_000])
            lists = [ids + end for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
            tokens.append(np.fromiter(chain.from_iterable(lists), np.int32))
            counts += map(len, lists)
        return np.concatenate(tokens), np.array(counts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.features.captions)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each caption, [M]."""
        return np.diff(self.starts)

    @property
    def shares(self) -> bool:
        """Whether any captions share a prefix."""
        return bool((self.leader != np.arange(len(self))).any())

    def batch(self, captions: np.ndarray) -> Batch:
        """The batch of the captions of these numbers; rows are padded to the longest of them."""
        first = np.diff(self.leader[captions], prepend=-1) != 0  # [n]: those that begin a row
        row_of = first.cumsum() - 1
        lengths = self.lengths[captions]
        begins = lengths.cumsum() - lengths  # of the captions' tokens, all end to end
        offsets = begins - begins[first][row_of]  # of each caption in its row
        position = np.arange(lengths.sum()) - np.repeat(begins, lengths)  # of each token in its caption
        cells = np.repeat(row_of, lengths), np.repeat(offsets, lengths) + position
        shape = row_of[-1] + 1, max(1, int((offsets + lengths).max()))
        input_ids, positions, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, IGNORE)
        input_ids[cells] = labels[cells] = self.tokens[np.repeat(self.starts[captions], lengths) + position]
        positions[cells] = position
        if self.reference:
            labels[input_ids == 0] = IGNORE
        rows = self.features.rows(self.features.caption_rows[captions[first]])
        ids, labels, positions = map(torch.from_numpy, (input_ids, labels, positions))
        return Batch(rows, ids, labels, None if first.all() else positions, captions, row_of)

    def steps(self, size: int, epoch: int, seed: int) -> list[np.ndarray]:
        """One epoch as the captions of each optimiser step, in training order.

        Depends on (size, epoch, seed) alone, their number on size alone. By default captions of similar length share
        a step; the original shuffles freely and drops the last, incomplete step.
        """
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        if self.reference:
            whole = len(order) // size * size
            return np.split(order[:whole], whole // size) if whole else [order]
        steps = self.bucketed(order, size)
        return [steps[i] for i in np.random.default_rng((seed, epoch, 1)).permutation(len(steps))]

    def bucketed(self, order: np.ndarray, size: int) -> list[np.ndarray]:
        """All captions, taken in this order, as steps of rows of similar length and at most `size` captions.

        The rows of a step hold the same number of captions and none is cut in two, except in the last steps, of what
        is left over.
        """
        place = np.argsort(order)
        order = np.lexsort((place, place[self.leader]))  # a row stands where its first caption stood
        together = np.bincount(self.leader)[self.leader[order]]  # captions in the row of each
        steps, left = [], []
        for count in np.unique(together):
            whole = size // count * count or size
            *full, last = self._sorted(order[together == count], whole)
            steps += full
            left.append(last)
        return steps + list(self._sorted(np.concatenate(left), size))

    def _sorted(self, captions: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Captions, those of a row side by side, in steps of this size; pools of steps are sorted by row length."""
        for start in range(0, len(captions), pool := POOL_STEPS * size):
            part = captions[start : start + pool]
            row = np.cumsum(np.diff(self.leader[part], prepend=-1) != 0)
            part = part[np.argsort(np.bincount(row, self.lengths[part])[row], kind="stable")]
            yield from (part[i : i + size] for i in range(0, len(part), size))

    def windows(self, size: int, epoch: int, seed: int, parts: Parts, skip: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""
        for captions in self.steps(size, epoch, seed)[skip:]:
            yield self.window(captions, parts)

    def window(self, captions: np.ndarray, parts: Parts) -> list[Batch]:
        """This process's share of some captions; where there is none, a caption that counts for nothing."""
        return [self.batch(mine) if len(mine) else self._idle(captions) for mine in parts.of(captions)]

    def _idle(self, captions: np.ndarray) -> Batch:
        idle = self.batch(captions[:1])
        idle.labels.fill_(IGNORE)
        return idle


@dataclass(frozen=True)
class Parts:
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


def shared_rows(features: Features) -> np.ndarray:
    """For each caption the first of those that stand in one row with it, `MOST_TOGETHER` at most: int64 [M]."""
    image = first_of_embedding(features)[features.caption_rows]
    order = np.argsort(image, kind="stable")
    begins = np.flatnonzero(np.diff(image[order], prepend=-1))
    number = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))  # of it in its image
    leader = np.empty_like(order)
    leader[order] = order[np.arange(len(order)) - number % MOST_TOGETHER]
    return leader


def first_of_embedding(features: Features) -> np.ndarray:
    """For each row its image's first row, where that has the same embedding, int64 [N]: old files repeat images."""
    _, first, image = np.unique(features.row_images, return_index=True, return_inverse=True)
    first = first[image]
    repeated = np.flatnonzero(first != np.arange(len(first)))
    for part in np.array_split(repeated, -(-len(repeated) // ROWS_TOGETHER) or 1):
        same = (features.rows(part) == features.rows(first[part])).all(dim=1).numpy()
        first[part[~same]] = part[~same]
    return first


def made_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def reference_max_length(counts: np.ndarray) -> int:
    """The original's padded length: mean + 10 standard deviations (unbiased) of the token counts."""
    lengths = torch.from_numpy(counts).float()
    spread = lengths.std() * 10 if len(lengths) > 1 else 0
    return min(int(lengths.mean() + spread), int(lengths.max()))
