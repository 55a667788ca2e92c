"""Captions of a feature file → batches of interleaved sequences, each caption in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from clipcap.clip_gpt.sequences import InterleavedBatch, Layout, Segment
from clipcap.training.dataset import BatchShare, CaptionDataset


@dataclass(frozen=True)
class Step:
    """What the micro-batches of one optimiser step share, on whatever process: it follows from its captions alone.

    The loop divides the step's summed loss by S, the number of its captions. To make that the mean over label tokens
    of the text's loss, plus the mean over embeddings of theirs, both times their weights, the one is scaled by
    S / label tokens, the other by S / embeddings, which is 1: every caption predicts one.
    """

    captions: np.ndarray  # [S] numbers of the captions
    embeddings: Tensor  # [C, D] of the step's different images
    row_of: dict[int, int]  # caption → row of `embeddings`
    text_scale: float
    embedding_scale: float


@dataclass
class TwoWayBatch:
    """Captions in both directions: one micro-batch of one process."""

    sequences: InterleavedBatch
    captions: np.ndarray  # numbers of the captions
    imagined: np.ndarray  # [O], of the captions whose embeddings are predicted
    step: Step
    counts: bool = True  # False where a process has no share of its own

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What the model's forward takes."""
        scales = {name: getattr(self.step, name) * self.counts for name in ("text_scale", "embedding_scale")}
        return self.sequences.inputs(device) | {k: torch.tensor(v, device=device) for k, v in scales.items()}


class PairDataset:
    """Sequences of captions and their images' embeddings.

    A caption is learnt in both directions within a step. With several images in a sequence they take turns:
    (image, text), (text, image), …, and the other way round in another sequence.

    Args:
        captions: tokenised, each with its end-of-text unless it was cut.
        layout: of the same tokenizer.
        text_weight, embedding_weight: of the two kinds of losses.
        images_per_sequence: captions that share a sequence; the last of a step has fewer.
    """

    def __init__(
        self,
        captions: CaptionDataset,
        layout: Layout,
        text_weight: float = 1.0,
        embedding_weight: float = 1.0,
        images_per_sequence: int = 1,
    ):
        self.captions, self.layout, self.images_per_sequence = captions, layout, images_per_sequence
        self.text_weight, self.embedding_weight = text_weight, embedding_weight

    def windows(
        self, size: int, epoch: int, seed: int, parts: BatchShare, skip: int = 0
    ) -> Iterator[list[TwoWayBatch]]:
        """The micro-batches of this process, a list per optimiser step of `size` captions, from step `skip` on."""
        many = self.images_per_sequence
        parts = replace(parts, micro=max(1, parts.micro // many))
        for captions in islice(self.captions.steps(size, epoch, seed), skip, None):
            step = self.step(captions)
            groups = np.array_split(captions, -(-len(captions) // many))
            chunks = np.array_split(np.arange(len(groups)), parts.chunks(len(groups)))
            mine = [[groups[i] for i in chunk[parts.rank :: parts.world]] for chunk in chunks]
            yield [self.batch(part, step) if part else self._idle(groups[0], step) for part in mine]

    def step(self, captions: np.ndarray) -> Step:
        """What a step of these captions shares."""
        features = self.captions.features
        rows, inverse = np.unique(features.caption_rows[captions], return_inverse=True)
        embeddings, same = torch.unique(features.rows(rows), dim=0, return_inverse=True)  # old files repeat images
        row_of = dict(zip(captions.tolist(), same[torch.from_numpy(inverse)].tolist(), strict=True))
        tokens = sum(map(self.label_tokens, captions.tolist()))
        text_scale = self.text_weight * len(captions) / tokens
        return Step(captions, embeddings, row_of, text_scale, self.embedding_weight)

    def label_tokens(self, number: int) -> int:
        """Label tokens of a caption, both directions together."""
        return self.layout.learnt(*self._length(number))

    def batch(self, groups: Sequence[np.ndarray], step: Step) -> TwoWayBatch:
        """The batch of some of a step's captions; those of a group share their sequences."""
        sequences: list[list[Segment]] = []
        imagined: list[int] = []
        for group in groups:
            for turn in (0, 1):
                segments: list[Segment] = []
                for place, number in enumerate(group.tolist()):
                    written = (place + turn) % 2 == 1
                    segments += self._item(number, step, written)
                    imagined += [number] * written
                sequences.append(segments)
        batch = self.layout.batch(sequences, step.embeddings)
        return TwoWayBatch(batch, np.concatenate(groups), np.array(imagined), step)

    def _idle(self, group: np.ndarray, step: Step) -> TwoWayBatch:
        """For a process without a share: it must take part, and its loss counts for nothing."""
        return replace(self.batch([group], step), counts=False)

    def _item(self, number: int, step: Step, written: bool) -> list[Segment]:
        """A caption and its embedding, which is `written` or read."""
        tokens, (length, whole) = self.captions, self._length(number)
        start = tokens.starts[number]
        ids = tokens.tokens[start : start + length].tolist()
        row = step.row_of[number]
        if written:
            return self.layout.caption_to_clip(ids, row, whole)
        return self.layout.clip_to_caption(row, ids, whole)

    def _length(self, number: int) -> tuple[int, bool]:
        """Tokens of a caption without its end-of-text, and whether it has one."""
        start, end = self.captions.starts[number], self.captions.starts[number + 1]
        whole = end > start and self.captions.tokens[end - 1] == self.layout.end
        return int(end - start) - int(whole), bool(whole)
