"""Prefix → captions: batched beam search and sampling with a KV cache (ClipCap, section 3.4).

Beam search is the original's: candidates of all beams compete by their average log-probability, and a finished
beam stays in the competition with its fixed average. Each image is decoded as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.captioning.beam_search import beam_search
from clipcap.captioning.cached_decoder import CachedDecoder, Hypotheses
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.sampling import sample
from clipcap.errors import ClipcapError
from clipcap.models.base import PrefixLM
from clipcap.models.given import Given
from clipcap.models.language_model import end_of_text, max_positions, token_ids

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from clipcap.prompts.datastore import Retrieved


@dataclass(frozen=True)
class Caption:
    """One decoded caption.

    `score` ranks it (average log-probability at the search's temperature); `logprob` is the mean log-probability
    per token at temperature 1. `retrieved` is what its prompt was made of.
    """

    text: str
    token_ids: list[int]
    score: float
    logprob: float
    clip_score: float | None = None
    retrieved: tuple[Retrieved, ...] = ()


@torch.inference_mode()
def decode(
    model: PrefixLM,
    tokenizer: Tokenizer,
    given: Given | Tensor,
    config: DecodeConfig,
    numbers: Sequence[int] | None = None,
) -> list[list[Caption]]:
    """Write captions for a batch of images.

    Args:
        model: in evaluation mode.
        tokenizer: of the model's language model.
        given: of N images; a tensor is their CLIP embeddings [N, D].
        config: how to decode.
        numbers: N, of the images in the whole run (default: 0, 1, …), so that samples do not depend on how images
            are batched.
    Returns:
        for each image its captions, best first.
    Raises:
        ClipcapError: prefix, prompt and caption do not fit the language model, or the stop token is not one token.
    """
    return continue_prefix(model, tokenizer, model.prefix(given), config, numbers, model.prefix_mask(given))


@torch.inference_mode()
def continue_prefix(
    model: PrefixLM,
    tokenizer: Tokenizer,
    prefix: Tensor,
    config: DecodeConfig,
    numbers: Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> list[list[Caption]]:
    """As `decode`, after any language-model inputs [N, P, E], of which a mask [N, P] says what is no padding."""
    config = resolve(config, model)
    stop_ids = stop_token_ids(tokenizer, config, model.caption_ends)
    prompt_ids = token_ids(tokenizer, config.prompt) if config.prompt else []
    used = max(prefix.shape[1], model.longest_prefix) + len(prompt_ids)
    config = config.fit_to(max_positions(model.lm) - used)
    check_length(model, used, config.longest)
    if prompt_ids:
        prompt = torch.tensor(prompt_ids, device=prefix.device).expand(len(prefix), -1)
        prefix = torch.cat([prefix, model.embed_tokens(prompt)], dim=1)  # [N, P + prompt, E]
        mask = mask if mask is None else F.pad(mask, (0, len(prompt_ids)), value=True)
    decoder = CachedDecoder(model, prefix, mask)
    if config.beam:
        found = beam_search(decoder, config, stop_ids, prompt_ids)
    else:
        found = sample(decoder, config, stop_ids, prompt_ids, numbers or range(len(prefix)))
    return _captions(found, tokenizer, prompt_ids, config, {end_of_text(tokenizer), *model.caption_ends})


def resolve(config: DecodeConfig, model: PrefixLM) -> DecodeConfig:
    """Fill in what the checkpoint decides: the stop token; under the reference recipe, what the original does."""
    reference = config.recipe == "reference"
    config = config.resolved()
    config = replace(config, stop_token=config.stop_token or model.config.stop_token or ("." if reference else None))
    if config.greedy or config.temp == 0:
        # Greedy is the same at any temperature; for beam search the original counts 0 as 1.
        config = replace(config, greedy=not config.beam, temp=1.0)
    vocabulary = model.head.out_features
    if config.beam and config.beam_size is not None and config.beam_size > vocabulary:
        raise ClipcapError(f"--beam_size {config.beam_size} is more than the language model's {vocabulary} tokens")
    if reference and not config.beam:
        config = replace(config, greedy=True)  # the original's "temperature" feeds an argmax
    if config.greedy and config.num_captions > 1:
        raise ClipcapError("greedy decoding writes one caption: --num_captions and --rerank need --beam or sampling")
    return config


def stop_token_ids(tokenizer: Tokenizer, config: DecodeConfig, ends: Sequence[int] = ()) -> list[int]:
    """Ids that end a caption: end-of-text first, but under the original's recipe the stop token alone.

    Args:
        tokenizer: of the language model.
        config: how to decode.
        ends: further ones that the checkpoint names.
    """
    stop: list[int] = []
    if config.stop_token:
        stop = token_ids(tokenizer, config.stop_token)
        if len(stop) != 1:
            raise ClipcapError(
                f"--stop_token {config.stop_token!r} is {len(stop)} tokens of this tokenizer; it must be one"
            )
    return stop if config.recipe == "reference" else [end_of_text(tokenizer), *ends, *stop]


def check_length(model: PrefixLM, used: int, max_new_tokens: int) -> None:
    """Refuse what would run past the language model's positions (transformers gives a bare IndexError)."""
    room = max_positions(model.lm) - used
    if max_new_tokens > room:
        raise ClipcapError(
            f"--max_new_tokens {max_new_tokens} does not fit: the language model takes {max_positions(model.lm)} "
            f"positions, prefix and prompt use {used}: at most {max(room, 0)}"
        )


def _captions(
    found: Hypotheses, tokenizer: Tokenizer, prompt_ids: list[int], config: DecodeConfig, ends: set[int]
) -> list[list[Caption]]:
    """Token ids → text, best first, at most `num_captions` an image."""
    keep_end = config.recipe == "reference"
    score = found.total / found.length  # [N, K]
    logprob = found.logprob / found.length
    ranks = score.sort(dim=1, descending=True, stable=True).indices.tolist()
    tokens, lengths = found.tokens.tolist(), found.length.long().tolist()
    score, logprob = score.tolist(), logprob.tolist()
    results = []
    for image, rank in enumerate(ranks):
        captions = []
        for k in rank[: config.num_captions]:
            ids = tokens[image][k][: lengths[image][k]]
            shown = ids if keep_end or ids[-1] not in ends else ids[:-1]
            text = str(tokenizer.decode([*prompt_ids, *shown], clean_up_tokenization_spaces=False))
            captions.append(Caption(text, ids, score[image][k], logprob[image][k]))
        results.append(captions)
    return results
