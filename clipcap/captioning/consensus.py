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

NEIGHBOURS = 15  # similar images whose captions are compared with
COUNTED = 5000  # rows of the datastore that document frequencies are counted in


class Consensus:
    """Orders captions by their mean CIDEr-D to the captions of an image's neighbours.

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

        Args:
            vectors: of the images, by the encoder of the datastore, [B, D].
            captions: of each.
        """
        near = self.store.near(vectors, NEIGHBOURS)
        found = []
        for rows, several in zip(near.rows.tolist(), captions):
            theirs = [text for row in rows if row >= 0 for text in self.store.entry(row).captions]
            texts = [caption.text for caption in several]
            if theirs and len(texts) > 1:
                scores = self._scorer.score_against([theirs] * len(texts), texts, [True] * len(texts))
                several = [several[i] for i in np.argsort(-np.array(scores), kind="stable").tolist()]
            found.append(list(several))
        return found


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
