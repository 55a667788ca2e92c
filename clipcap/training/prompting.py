"""Prompts in training: what a captioner learns to read before it writes, drawn anew for every step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.captioning.image_inputs import embed_pictures
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features, PromptTokens
from clipcap.models.base import IGNORE
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.load import load_encoder
from clipcap.prompts.config import PromptConfig
from clipcap.prompts.datastore import Datastore
from clipcap.prompts.entities import Entities, fitting
from clipcap.prompts.neighbours import neighbours
from clipcap.prompts.template import MOST_WORDS, PromptText, padded
from clipcap.runtime.hub import absolute
from clipcap.runtime.text import counted
from clipcap.training.dataset import Batch, CaptionDataset
from clipcap.training.objective import first_caption_numbers
from clipcap.training.renaming import Renaming, strange_words

GATE = 5  # percentile of the cosines of the nearest in training, below which an image has no prompt
NAMED = 0.6  # share of the words of a caption that its prompt names (ViECap, section 4.1)
PICTURES = 64  # encoded at once
LOOKED_AT = 1000  # captions, for words of a list


class Source(Protocol):
    """Texts of which the prompts of rows of features are made."""

    def best(self, rows: np.ndarray) -> list[list[str]]:
        """The texts that a prediction would find, of rows int64 [B]."""
        ...

    def drawn(self, row: int, rng: np.random.Generator) -> list[str]:
        """Texts of a row of the training set for one step."""
        ...


class RetrievedCaptions:
    """Captions of the neighbours in a datastore.

    Args:
        features: whose rows have prompts.
        store: is searched.
        count: captions of a prompt.
        retrieving: the second encoder that retrieves, or None.
    """

    def __init__(self, features: Features, store: Datastore, count: int, retrieving: Encoder | None):
        self.store, self.count = store, count
        queries = None if retrieving is None else _pictures(features, retrieving)
        self.near = neighbours(features, store, queries)

    def best(self, rows: np.ndarray) -> list[list[str]]:
        """As of any `Source`: the first caption of each of the nearest."""
        return [self._captions(self.near.rows[row, : self.count].tolist(), [0] * self.count) for row in rows.tolist()]

    def drawn(self, row: int, rng: np.random.Generator) -> list[str]:
        """As of any `Source`: of some of the neighbours, any of their captions (arXiv 2406.02265)."""
        there = self.near.rows[row][self.near.rows[row] >= 0]
        chosen = rng.permutation(there)[: self.count]
        return self._captions(chosen.tolist(), rng.integers(1 << 16, size=self.count).tolist())

    def _captions(self, rows: Sequence[int], choices: Sequence[int]) -> list[str]:
        found = [self.store.retrieved(row, 0.0, choice) for row, choice in zip(rows, choices) if row >= 0]
        return [one.caption for one in found if one]

    def gate(self) -> float | None:
        """The cosine that nearly all images of the training set reach with their nearest."""
        best = self.near.scores[:, 0]
        return round(float(np.percentile(best[best > -1], GATE)), 4) if (best > -1).any() else None


class NamedWords:
    """Words of a list: those that the captions of a row name, in training; those that fit the image, otherwise.

    Args:
        features: whose rows have prompts.
        entities: the list.
        words: its embeddings [W, D], of norm 1, by the encoder of the features.
        scale: of the cosines, the encoder's own.
    """

    def __init__(self, features: Features, entities: Entities, words: torch.Tensor, scale: float):
        self.features, self.entities, self.words, self.scale = features, entities, words, scale

    def best(self, rows: np.ndarray) -> list[list[str]]:
        """As of any `Source`."""
        found = fitting(self.features.rows(rows), self.words, self.scale, MOST_WORDS)
        return [[self.entities.words[word] for word, _ in several] for several in found]

    def drawn(self, row: int, rng: np.random.Generator) -> list[str]:
        """As of any `Source`: each word of the captions with a chance of 0.6."""
        named = self.entities.named_in(self.features.captions_of(row))
        chosen = [word for word in named if rng.random() < NAMED]
        return [str(word) for word in rng.permutation(chosen)[:MOST_WORDS]]


@dataclass(frozen=True)
class Prompting:
    """How the prompts of a run are made.

    Attributes:
        config: its options.
        source: of rows of features → their texts.
        training: that of the training features.
        samples: texts of the kind that prompts are made of.
        fields: what the checkpoint stores of them, besides their length.
        note: a line for the start of the run.
        entities: whose words are exchanged in training, or None.
    """

    config: PromptConfig
    source: Callable[[Features], Source]
    training: Source
    samples: Sequence[str]
    fields: dict[str, Any]
    note: str
    entities: Entities | None = None

    def of_model(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What a checkpoint stores of its prompts, before a language model with this tokenizer."""
        text = PromptText(tokenizer, self.config.prompts, self.config.prompt_captions)
        return {**self.fields, "prompt_tokens": text.longest(self.samples)}

    def with_best(self, features: Features, text: PromptText) -> Features:
        """Features whose rows have the prompts of a prediction; each is found once."""
        source, known = self.source(features), dict[int, list[int]]()

        def find(rows: np.ndarray) -> PromptTokens:
            new = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in known], np.int64)
            if len(new):
                known.update(zip(new.tolist(), text.prompts(source.best(new))))
            return padded([known[row] for row in rows.tolist()])

        return replace(features, prompts=find)

    def identity(self) -> dict[str, Any]:
        """By name, what decides the weights."""
        names = ("prompts", "prompt_captions", "prompt_dropout", "retrieve_with")
        of_source = {name: self.fields[name] for name in ("datastore_id",) if name in self.fields}
        samples = hashlib.blake2b("\n".join(self.samples).encode(), digest_size=8).hexdigest()
        own = {**{name: getattr(self.config, name) for name in names}, **of_source, "texts of prompts": samples}
        if self.entities is None or not self.config.renamed:
            return own
        words = hashlib.blake2b("\n".join(self.entities.words).encode(), digest_size=8).hexdigest()
        return {**own, "renaming": self.config.renamed, "words": words}


class DrawnPrompts:
    """Draws the prompts of the batches of a run; what a row has depends on (seed, step, row) alone.

    Args:
        prompting: how they are made.
        data: the captions of the run.
        text: makes tokens of texts.
        seed: of the run.
    """

    def __init__(self, prompting: Prompting, data: CaptionDataset, text: PromptText, seed: int):
        self.prompting, self.data, self.text, self.seed = prompting, data, text, seed
        self.renaming: Renaming | None = None
        if prompting.entities is not None and prompting.config.renamed:
            strange = strange_words(text.tokenizer, data.features.captions)
            self.renaming = Renaming(prompting.entities, strange, prompting.config.renamed)

    def added(self, batch: Batch, step: int) -> Batch:
        """The batch with a prompt before the captions of each row, but for the share that has none."""
        first = first_caption_numbers(batch)  # [B]
        leaders = self.data.order.leaders(first)
        rows = self.data.features.caption_rows[first]
        texts, reworded = [], dict[int, str]()
        for number, (row, leader) in enumerate(zip(rows.tolist(), leaders.tolist())):
            rng = np.random.default_rng((self.seed, step, leader))
            dropped = rng.random() < self.prompting.config.prompt_dropout
            texts.append([] if dropped else self.prompting.training.drawn(row, rng))
            if texts[-1] and self.renaming is not None:
                places = np.flatnonzero(batch.row_of == number).tolist()
                captions = [self.data.features.captions[int(batch.captions[place])] for place in places]
                if found := self.renaming.drawn(captions, texts[-1], rng):
                    reworded |= dict(zip(places, found[0]))
                    texts[-1] = found[1]
        if reworded and (batch.labels != IGNORE).any():  # but not of a batch that counts nothing
            batch = self.data.reworded(batch, reworded)
        ids, mask = padded(self.text.prompts(texts))
        return replace(batch, given=replace(batch.given, prompt_ids=ids, prompt_mask=mask))


def open_prompting(config: PromptConfig, features: Features, device: str) -> Prompting | None:
    """What makes the prompts of a run on these features; None where it has none.

    Raises:
        ClipcapError: no such datastore or list, one of another encoder, or pictures that are not at hand.
    """
    if config.prompts == "none":
        return None
    return (
        _captions(config, features, device) if config.prompts == "captions" else _entities(config, features, device)
    )


def _captions(config: PromptConfig, features: Features, device: str) -> Prompting:
    retrieving = load_encoder(config.retrieve_with, device) if config.retrieve_with else None
    meta, place = features.meta, str(config.datastore)
    what = f"the training features {features.path}"
    if retrieving is None:
        store = Datastore.open(place, meta.encoder, meta.encoder_weights_id, features.dim, what)
    else:
        store = Datastore.open(place, retrieving.name, retrieving.weights_id, retrieving.dim, "--retrieve_with")

    def source(rows: Features) -> RetrievedCaptions:
        return RetrievedCaptions(rows, store, config.prompt_captions, retrieving)

    training = source(features)
    gate = training.gate()
    if gate is None:
        raise ClipcapError(
            f"--datastore {place}: holds nothing but the images trained on, or no finite features: pass another one"
        )
    fields = {
        "prompts": "captions",
        "prompt_captions": config.prompt_captions,
        "datastore": absolute(place),
        "datastore_id": store.fingerprint(),
        "prompt_gate": gate if store.tower == "image" else None,
        "retrieve_with": retrieving.name if retrieving else None,
    }
    middle = float(np.median(training.near.scores[:, 0]))
    note = (
        f"prompts: {counted(config.prompt_captions, 'caption')} of similar images of {place}, none for "
        f"{config.prompt_dropout:.0%} of the examples; median cosine of the nearest {middle:.3f}"
    )
    samples = store.some_captions()
    if config.entities is None:
        return Prompting(config, source, training, samples, fields, note)
    entities, share = _entities_named(config.entities, features)
    note += f"\n{share:.0%} of the captions name a word of {config.entities}; {_renaming_note(config)}"
    return Prompting(config, source, training, samples, fields, note, entities)


def _entities(config: PromptConfig, features: Features, device: str) -> Prompting:
    if features.meta.encoder is None:
        raise ClipcapError(f"{features.path}: does not say its encoder: name it with --clip_model_type")
    entities, share = _entities_named(str(config.entities), features)
    encoder = load_encoder(features.meta.encoder, device)
    words = entities.encoded(encoder)  # now, since an encoder without a text tower is of no use later either

    def source(rows: Features) -> NamedWords:
        return NamedWords(rows, entities, words, encoder.logit_scale)

    note = f"prompts: words of {config.entities}, which {share:.0%} of the captions name; {_renaming_note(config)}"
    fields = {"prompts": "entities"}
    return Prompting(config, source, source(features), entities.words, fields, note, entities)


def _renaming_note(config: PromptConfig) -> str:
    if not config.renamed:
        return "none is renamed"
    return f"in {config.renamed:.0%} of the examples one is renamed in caption and prompt (--renaming 0: never)"


def _entities_named(path: str, features: Features) -> tuple[Entities, float]:
    """The list, and the share of some captions, spread over the features, that name a word of it.

    Raises:
        ClipcapError: it cannot be read, or none of them does.
    """
    entities = Entities.read(path)
    count = len(features.captions)
    places: list[int] = np.linspace(0, count, min(count, LOOKED_AT), endpoint=False, dtype=np.int64).tolist()
    named = sum(bool(entities.named_in([features.captions[place]])) for place in places)
    if not named:
        raise ClipcapError(
            f"--entities {path}: of {counted(len(places), 'caption')} none names one of its "
            f"{counted(len(entities.words), 'word')}: nothing is learnt from such a list"
        )
    return entities, named / len(places)


def _pictures(features: Features, encoder: Encoder) -> torch.Tensor:
    """The pictures of all rows as another encoder sees them, [N, D].

    Raises:
        ClipcapError: the features hold no path of a picture, or it cannot be read.
    """
    paths = [path for path in features.image_paths if path]
    if len(paths) < features.num_images:
        raise ClipcapError(
            f"{features.path}: does not say where all its pictures are, which --retrieve_with looks at"
        )
    parts = [embed_pictures(encoder, paths[i : i + PICTURES]).cpu() for i in range(0, len(paths), PICTURES)]
    return torch.cat(parts)
