"""Which of several captions to take: the one nearest to what is said of similar images (arXiv 1505.04467)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from torch import Tensor

from clipcap.captioning.decode import Caption
from clipcap.errors import ClipcapError
from clipcap.prompts.datastore import Datastore
from clipcap.scoring.cider_reward import CiderReward
from clipcap.scoring.words import words_of

NEIGHBOURS = 60  # similar images whose captions are compared with
FADING = 10  # the n-th of them, from 0 on, counts as 1 / (FADING + n)
LIKELY = 0.1  # CIDEr-D that a caption is worth for each unit of its mean log-probability
COUNTED = 5000  # rows of the datastore that document frequencies are counted in


class Consensus:
    """Orders captions by their mean CIDEr-D to the captions of an image's neighbours, nearer ones counting more.

    How likely a caption is counts a little, too. Numbers and fading are measured (`benchmarks/quality/prompts`).

    Args:
        store: of captioned images, or of texts.
    """

    def __init__(self, store: Datastore):
        self.store = store

    @cached_property
    def _scorer(self) -> CiderReward:
        """CIDEr-D with the document frequencies of the datastore."""
        rows = np.unique(np.linspace(0, len(self.store.index) - 1, COUNTED, dtype=np.int64)).tolist()
        captions = [captions for row in rows if (captions := self.store.entry(row).captions)]
        return CiderReward(captions, end=False)

    def order(self, vectors: Tensor, captions: Sequence[Sequence[Caption]]) -> list[list[Caption]]:
        """The captions of each image, best first; as they are where an image has no neighbours.

        Captions of the same words as a better one stand last.

        Args:
            vectors: of the images, by the encoder of the datastore, [B, D].
            captions: of each.
        """
        near = self.store.near(vectors, NEIGHBOURS)
        return [self._ordered(rows, list(several)) for rows, several in zip(near.rows.tolist(), captions)]

    def _ordered(self, rows: Sequence[int], captions: list[Caption]) -> list[Caption]:
        """The captions of one image, by these rows of the datastore, nearest first; -1 where there are fewer."""
        entries = [(self.store.entry(row).captions, 1 / (FADING + n)) for n, row in enumerate(rows) if row >= 0]
        said = [(theirs, weight) for theirs, weight in entries if theirs]
        if not said or len(captions) < 2:
            return captions
        others, weights = zip(*said)
        scores = np.array(self._scorer.agreement([caption.text for caption in captions], others, weights))
        scores += LIKELY * np.array([caption.logprob for caption in captions])
        best_first = [captions[i] for i in np.argsort(-scores, kind="stable").tolist()]
        words = words_of([caption.text for caption in best_first])
        repeated_last = sorted(range(len(words)), key=lambda place: words.index(words[place]) < place)
        return [best_first[place] for place in repeated_last]


def consensus_of(found: Consensus | None) -> Consensus:
    """What orders captions, where there is something to compare with.

    Raises:
        ClipcapError: there is not.
    """
    if found is None:
        raise ClipcapError(
            "--rerank consensus compares with the captions of similar images: name them by --datastore (captioners "
            "of --retrieve_with have none: their datastore is of another encoder)"
        )
    return found
