"""Further pairs, such as generated ones, as a share of every batch of a captioner's training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Features
from clipcap.features.files import read_to_train
from clipcap.training.dataset import Batch, CaptionDataset
from clipcap.training.objective import CrossEntropy, Steps

_ROUNDS = 1 << 12  # rounds of the further pairs that an epoch may take


def read_extra(path: str, features: Features) -> Features:
    """The features of --extra, which must be of the encoder of the others.

    Raises:
        ClipcapError: they cannot be read, or are another encoder's.
    """
    extra = read_to_train(path)
    meta = features.meta
    check_same_encoder(
        extra.meta, extra.dim, None if meta.encoder_guessed else meta.encoder, meta.encoder_weights_id, features.dim,
        path, f"the training features {features.path}",
    )  # fmt: skip
    return extra


class ExtraPairs(CrossEntropy):
    """Cross-entropy on captions of the set and, as a share of every step, on captions of another one.

    Args:
        steps: of the run; an epoch goes once through its captions.
        extra: further features, which begin anew when all have been seen.
        share: of a step's captions that are of `extra`.
    Raises:
        ClipcapError: a step is too small to hold captions of both.
    """

    def __init__(self, steps: Steps, extra: Features, share: float):
        real = round(steps.size * (1 - share))
        if not 0 < real < steps.size:
            raise ClipcapError(
                f"--extra_share {share} leaves a step of {steps.size} captions none of one set: raise --bs"
            )
        super().__init__(replace(steps, size=real))
        data = steps.data
        self.share = share
        self.more = CaptionDataset(extra, data.tokenizer, data.max_tokens, data.reference, data.share_prefix)
        self._size = steps.size - real

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, those of the further pairs behind the others of each step."""
        further = islice(self._further(epoch), skip, None)
        return (window + more for window, more in zip(self.steps.windows(epoch, skip), further))

    def _further(self, epoch: int) -> Iterator[list[Batch]]:
        steps, first = self.steps, len(self.steps.data)
        least = min(self._size, len(self.more))  # captions of a step; a smaller rest of a round is passed over
        for number in count():
            for captions in self.more.steps(self._size, epoch * _ROUNDS + number, steps.seed):
                if len(captions) < least:
                    continue
                window = self.more.window(captions, steps.parts)
                for batch in window:
                    batch.captions = batch.captions + first  # no number of the set's own captions
                yield window

    def describe(self) -> list[str]:
        """Which pairs are added, and how many."""
        return [f"{self.share:.0%} of every step from {len(self.more)} captions of {self.more.features.path}"]

    def identity(self) -> dict[str, Any]:
        """The share, and the further captions."""
        return {"extra_share": self.share, "checksum of the further captions": self.more.checksum()}
