"""Renaming in training: a thing gets another name in caption and prompt alike, so that names come from the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.prompts.entities import Entities

LOOKED_THROUGH = 100_000  # captions, for the words that they use
STRANGE = 0.5  # share of the new names that no caption has


@dataclass(frozen=True)
class Renaming:
    """Exchanges a word that a caption and its prompt name for another one, in both.

    A captioner that has always seen the names of its pictures reads them off the picture, and passes over the prompt.
    Here half of the new names are of the list, and half are words that no caption of the training has: otherwise a
    language model that is tuned unlearns to write them.

    Args:
        entities: the list.
        strange: words that no caption has.
        share: of the examples.
    """

    entities: Entities
    strange: Sequence[str]
    share: float

    def drawn(
        self, captions: list[str], prompt: list[str], rng: np.random.Generator
    ) -> tuple[list[str], list[str]] | None:
        """Captions of one image and the texts of its prompt, for one step; None where they stay as they are."""
        if rng.random() >= self.share:
            return None
        shown, read = self.entities.named_in(captions), self.entities.named_in(prompt)
        both, taken = [word for word in shown if word in read], {*shown, *read}
        if not both:
            return None
        names = self.strange if self.strange and rng.random() < STRANGE else self.entities.words
        drawn: np.ndarray = rng.choice(len(names), min(len(names), len(taken) + 1), replace=False)
        others = [names[int(number)] for number in drawn if names[int(number)] not in taken]
        if not others:
            return None
        word, other = both[int(rng.integers(len(both)))], others[0]
        captions = [self.entities.renamed(caption, word, other) for caption in captions]
        return captions, [self.entities.renamed(text, word, other) for text in prompt]


def strange_words(tokenizer: Tokenizer, captions: Sequence[str]) -> list[str]:
    """Words of a language model's vocabulary, one token each, that captions do not have."""
    known = {word for caption in captions[:LOOKED_THROUGH] for word in re.findall("[a-z]+", caption.lower())}
    tokens = cast(list[str], tokenizer.batch_decode([[number] for number in range(len(tokenizer))]))
    return [token[1:] for token in tokens if re.fullmatch(" [a-z]{3,}", token) and token[1:] not in known]
