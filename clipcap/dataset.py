"""Feature file → tokenised, length-bucketed batches, the same whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.errors import ClipcapError
from clipcap.features import Features

IGNORE = -100  # label of positions that count for nothing, as in torch
POOL_STEPS = 64  # optimiser steps whose captions are sorted by length together


@dataclass
class Batch:
    """Captions and their images' embeddings: one micro-batch of one process."""

    clip_embedding: Tensor  # [B, D] float32
    input_ids: Tensor  # [B, T]
    labels: Tensor  # [B, T], IGNORE where there is nothing to learn
    captions: np.ndarray  # [B] numbers of the captions

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What the model's forward takes."""
        names = ("clip_embedding", "input_ids", "labels")
        return {name: getattr(self, name).to(device, non_blocking=True) for name in names}


@dataclass
class CaptionDataset:
    """Tokenised captions over a feature file.

    Args:
        features: embeddings and captions.
        tokenizer: of the language model.
        max_tokens: captions are cut to this many tokens, the end-of-text token included.
        reference: the original's labels: no end-of-text token, id 0 (`!`) never learnt, captions cut to mean + 10
            standard deviations of the set.
    """

    features: Features
    tokenizer: Tokenizer
    max_tokens: int
    reference: bool = False
    truncated: int = field(init=False, default=0)
    tokens: np.ndarray = field(init=False)  # int32, all captions one after the other
    starts: np.ndarray = field(init=False)  # int64 [M + 1]

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

    def batch(self, captions: np.ndarray) -> Batch:
        """The batch of the captions of these numbers, padded to its own longest."""
        starts, ends = self.starts[captions], self.starts[captions + 1]
        longest = max(1, int((ends - starts).max()))
        input_ids = torch.zeros(len(captions), longest, dtype=torch.long)
        labels = torch.full_like(input_ids, IGNORE)
        for row, (start, end) in enumerate(zip(starts, ends)):
            ids = torch.from_numpy(self.tokens[start:end].astype(np.int64))
            input_ids[row, : len(ids)] = ids
            labels[row, : len(ids)] = ids
        if self.reference:
            labels[input_ids == 0] = IGNORE
        rows = self.features.caption_rows[captions]
        return Batch(self.features.rows(rows), input_ids, labels, captions)

    def steps(self, size: int, epoch: int, seed: int) -> list[np.ndarray]:
        """One epoch as the captions of each optimiser step, in training order.

        Depends on (size, epoch, seed) alone. By default captions of similar length share a step; the original
        shuffles freely and drops the last, incomplete step.
        """
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        if self.reference:
            whole = len(order) // size * size
            return np.split(order[:whole], whole // size) if whole else [order]
        lengths = self.lengths
        steps = []
        for start in range(0, len(order), pool := POOL_STEPS * size):
            part = order[start : start + pool]
            part = part[np.argsort(lengths[part], kind="stable")]
            steps += [part[i : i + size] for i in range(0, len(part), size)]
        return [steps[i] for i in np.random.default_rng((seed, epoch, 1)).permutation(len(steps))]

    def windows(self, size: int, epoch: int, seed: int, parts: Parts, skip: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""
        for captions in self.steps(size, epoch, seed)[skip:]:
            yield [self._part(chunk, parts) for chunk in np.array_split(captions, parts.chunks(len(captions)))]

    def _part(self, captions: np.ndarray, parts: Parts) -> Batch:
        """This process's share of a micro-batch; where there is none, a caption that counts for nothing."""
        mine = captions[parts.rank :: parts.world]
        if len(mine):
            return self.batch(mine)
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


def reference_max_length(counts: np.ndarray) -> int:
    """The original's padded length: mean + 10 standard deviations (unbiased) of the token counts."""
    lengths = torch.from_numpy(counts).float()
    spread = lengths.std() * 10 if len(lengths) > 1 else 0
    return min(int(lengths.mean() + spread), int(lengths.max()))
