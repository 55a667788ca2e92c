"""The prompts of images that are captioned: retrieved or named when they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.base import Encoder
from clipcap.prompts.datastore import Datastore, Retrieved
from clipcap.prompts.entities import Entities, fitting
from clipcap.prompts.template import MOST_WORDS, PromptText
from clipcap.runtime.messages import logger
from clipcap.runtime.text import printable


@dataclass
class Counts:
    """How many images had a prompt: of all, those without, and those that the training's datastore gave one."""

    images: int = 0
    without: int = 0
    otherwise: int = 0


class Prompter(Protocol):
    """Finds the prompts of images."""

    counts: Counts

    @property
    def encoder(self) -> str | None:
        """The second encoder that has to look at the images; None for that of the captioner."""
        ...

    def find(self, vectors: Tensor) -> tuple[list[list[int]], list[tuple[Retrieved, ...]]]:
        """The prompts of images [B, D] as tokens, and what they are made of; nothing where nothing fits."""
        ...


@dataclass
class CaptionPrompter:
    """Captions of the nearest images of a datastore.

    Args:
        store: is searched.
        text: makes tokens of captions.
        gate: cosine of the nearest image below which there is no prompt; None for no such limit.
        encoder: as any `Prompter` has it.
        otherwise: gives the images their prompts that find none here.
    """

    store: Datastore
    text: PromptText
    gate: float | None = None
    encoder: str | None = None
    otherwise: CaptionPrompter | None = None
    counts: Counts = field(default_factory=Counts)

    def find(self, vectors: Tensor) -> tuple[list[list[int]], list[tuple[Retrieved, ...]]]:
        """As of any `Prompter`."""
        found = self.retrieved(vectors)
        rest = [i for i, several in enumerate(found) if not several]
        if self.otherwise is not None and rest:
            theirs = iter(self.otherwise.retrieved(vectors[rest]))
            found = [several or next(theirs) for several in found]
        without = sum(not several for several in found)
        self.counts.images += len(found)
        self.counts.without += without
        self.counts.otherwise += len(rest) - without
        return self.text.prompts([[one.caption for one in several] for several in found]), found

    def retrieved(self, vectors: Tensor) -> list[tuple[Retrieved, ...]]:
        """The captions that the datastore has for images [B, D]; none for one that is further away than the gate."""
        near = self.store.near(vectors, self.text.count)
        found: list[tuple[Retrieved, ...]] = []
        for rows, scores in zip(near.rows.tolist(), near.scores.tolist()):
            close = rows[0] >= 0 and (self.gate is None or scores[0] >= self.gate)
            several = [self.store.retrieved(row, score) for row, score in zip(rows, scores) if close and row >= 0]
            found.append(tuple(one for one in several if one))
        return found


@dataclass
class EntityPrompter:
    """Words of a list that fit an image.

    Args:
        entities: the list.
        words: its embeddings [W, D], of norm 1.
        scale: of the cosines, the encoder's own.
        text: makes tokens of words.
    """

    entities: Entities
    words: Tensor
    scale: float
    text: PromptText
    encoder: str | None = None
    counts: Counts = field(default_factory=Counts)

    def find(self, vectors: Tensor) -> tuple[list[list[int]], list[tuple[Retrieved, ...]]]:
        """As of any `Prompter`."""
        found = [
            tuple(Retrieved(self.entities.words[word], "", None, share) for word, share in several)
            for several in fitting(vectors, self.words, self.scale, MOST_WORDS)
        ]
        self.counts.images += len(found)
        self.counts.without += sum(not several for several in found)
        return self.text.prompts([[one.caption for one in several] for several in found]), found


def open_store(path: str, config: ModelConfig, retrieving: Encoder | None, what: str) -> Datastore:
    """The datastore at a place, checked against the encoder that searches it."""
    if retrieving is not None:
        return Datastore.open(path, retrieving.name, retrieving.weights_id, retrieving.dim, what)
    return Datastore.open(path, config.encoder, config.encoder_weights_id, config.clip_dim, what)


def caption_prompter(
    config: ModelConfig, text: PromptText, datastore: str | None, gate: float | None, retrieving: Encoder | None
) -> CaptionPrompter | None:
    """The prompts of a captioner that reads captions; None, with a warning, where its datastore is not at hand.

    Args:
        config: of the captioner.
        text: makes tokens of captions.
        datastore: to use in place of that of the training.
        gate: to use in place of that of the training.
        retrieving: the second encoder that retrieves, or None.
    Raises:
        ClipcapError: the datastore named is none, or another encoder's.
    """
    if datastore is None:
        if config.datastore is None or not Path(config.datastore).exists():
            logger.warning(
                f"this captioner reads captions of similar images; its datastore "
                f"{printable(str(config.datastore))} is not here: captions are written without it: pass --datastore"
            )
            return None
        datastore = config.datastore
    store = open_store(datastore, config, retrieving, "the checkpoint")
    if datastore == config.datastore and config.datastore_id not in (None, store.fingerprint()):
        logger.info(f"the datastore {printable(datastore)} is another one than in training")
    if gate is None and store.tower == "image":
        gate = config.prompt_gate
    swapped = gate is not None and datastore != config.datastore
    otherwise = _of_training(config, text, retrieving) if swapped else None
    return CaptionPrompter(store, text, gate, config.retrieve_with, otherwise)


def _of_training(config: ModelConfig, text: PromptText, retrieving: Encoder | None) -> CaptionPrompter | None:
    """The prompts from the datastore of the training; None where it is gone, or is no longer what it was."""
    if config.datastore is None or not Path(config.datastore).exists():
        return None
    try:
        store = open_store(config.datastore, config, retrieving, "the checkpoint")
    except ClipcapError as error:
        logger.warning(f"the datastore of the training is not used: {error}")
        return None
    return CaptionPrompter(store, text, config.prompt_gate, config.retrieve_with)


def entity_prompter(text: PromptText, path: str | Path | None, encoder: Encoder) -> EntityPrompter | None:
    """The prompts of a captioner that reads words; None, with a warning, where it is given none.

    Raises:
        ClipcapError: no such list, or an encoder without a text tower.
    """
    if path is None:
        logger.warning("this captioner reads words of a list, and is given none: pass --entities words.txt")
        return None
    entities = Entities.read(path)
    return EntityPrompter(entities, entities.encoded(encoder), encoder.logit_scale, text)


def report_prompts(counts: Counts) -> None:
    """State how many images had no prompt, or another datastore's, where there were any."""
    if counts.otherwise:
        logger.info(
            f"{counts.otherwise:,} of {counts.images:,} images have nothing like them in --datastore, and read "
            f"captions of the datastore of the training"
        )
    if counts.without:
        logger.info(
            f"{counts.without:,} of {counts.images:,} images have nothing like them in the datastore or list, and "
            f"were captioned without a prompt"
        )
