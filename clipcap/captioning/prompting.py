"""Prompts of the images that a captioner is given: opened with its checkpoint, found batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from clipcap.captioning.decode import Caption
from clipcap.errors import ClipcapError
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.base import Encoder
from clipcap.models.given import Given
from clipcap.prompts.template import PromptText, padded

if TYPE_CHECKING:  # take long to import, and few captioners need them
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from clipcap.captioning.consensus import Consensus
    from clipcap.prompts.datastore import Retrieved
    from clipcap.prompts.prompter import Prompter


def open_prompter(
    config: ModelConfig,
    tokenizer: Tokenizer,
    encoder: Callable[[str | None], Encoder],
    datastore: str | Path | None = None,
    entities: str | Path | None = None,
    gate: float | None = None,
) -> Prompter | None:
    """What finds the prompts that a captioner reads; None where it reads none, or they are not at hand.

    Args:
        config: of the captioner.
        tokenizer: of its language model.
        encoder: name → the encoder, None → the captioner's own.
        datastore: in place of that of the training.
        entities: file of the list.
        gate: in place of that of the training.
    Raises:
        ClipcapError: prompts that it does not read, or a datastore of another encoder.
    """
    check_prompts(config, entities, gate)
    if config.prompts == "none":
        return None
    from clipcap.prompts.prompter import caption_prompter, entity_prompter

    text = PromptText(tokenizer, config.prompts, config.prompt_captions, config.prompt_tokens)
    if config.prompts == "entities":
        return entity_prompter(text, entities, encoder(None))
    retrieving = encoder(config.retrieve_with) if config.retrieve_with else None
    return caption_prompter(config, text, None if datastore is None else str(datastore), gate, retrieving)


def check_prompts(config: ModelConfig, entities: str | Path | None, gate: float | None = None) -> None:
    """Refuse a list of words, or a gate of captions, for a captioner that has not learnt to read such.

    Raises:
        ClipcapError: names the flag.
    """
    if entities is not None and config.prompts != "entities":
        raise ClipcapError(
            f"--entities is for captioners that were trained with --prompts entities, and this one has "
            f"--prompts {config.prompts}: leave it out, or train one"
        )
    if gate is not None and config.prompts != "captions":
        raise ClipcapError(
            f"--prompt_gate is for captioners that were trained with --prompts captions, and this one has "
            f"--prompts {config.prompts}: leave it out"
        )


def check_datastore(rerank: str, datastore: str | None, prompts: str) -> None:
    """Refuse captions that nothing reads.

    Raises:
        ClipcapError: names the flag.
    """
    if datastore is not None and rerank != "consensus" and prompts != "captions":
        raise ClipcapError(
            "--datastore is read by captioners of --prompts captions and by --rerank consensus: add that, or leave "
            "it out"
        )


def open_consensus(
    config: ModelConfig, datastore: str | Path | None, prompter: Prompter | None = None
) -> Consensus | None:
    """What orders captions by those of similar images, where some are at hand; opened, not read yet.

    Args:
        config: of the captioner.
        datastore: as named.
        prompter: of the captioner: where it retrieves captions by the captioner's own encoder, they serve as well.
    Raises:
        ClipcapError: the datastore is none, or another encoder's than the captioner reads.
    """
    if config.retrieve_with or (datastore is None and prompter is None):
        return None
    from clipcap.captioning.consensus import Consensus
    from clipcap.prompts.prompter import CaptionPrompter, open_store

    if isinstance(prompter, CaptionPrompter):
        return Consensus(prompter.store)
    return None if datastore is None else Consensus(open_store(str(datastore), config, None, "the checkpoint"))


def with_prompts(
    given: Given, prompter: Prompter | None, seen: Callable[[str], Tensor]
) -> tuple[Given, Sequence[tuple[Retrieved, ...]]]:
    """What is given of B images together with their prompts, and what those are made of.

    Args:
        given: of the images.
        prompter: finds the prompts, or None.
        seen: the images as a second encoder of this name sees them, [B, D].
    """
    if prompter is None or given.prompt_ids is not None:
        return given, [()] * len(given)
    vectors = given.vectors if prompter.encoder is None else seen(prompter.encoder)
    prompts, found = prompter.find(vectors)
    ids, mask = padded(prompts)
    return replace(given, prompt_ids=ids, prompt_mask=mask).to(given.vectors.device), found


def with_retrieved(
    found: Sequence[Sequence[Caption]], retrieved: Sequence[tuple[Retrieved, ...]]
) -> list[list[Caption]]:
    """The captions of each image with what was retrieved for it."""
    return [
        [replace(c, retrieved=of) for c in captions] if of else list(captions)
        for captions, of in zip(found, retrieved)
    ]
