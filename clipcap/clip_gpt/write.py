"""Text that CLIP-GPT writes: captions of embeddings, and what follows any sequence. Decoding is captioning's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import Caption, continue_prefix, decode
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.sequences import Segment, inside_brackets
from clipcap.models.given import Given


def write_captions(
    model: ClipGPT,
    tokenizer: Tokenizer,
    given: Given | Tensor,
    config: DecodeConfig,
    numbers: Sequence[int] | None = None,
) -> list[list[Caption]]:
    """Captions of N images, as `decode` writes them, without the closing bracket."""
    found = decode(model, tokenizer, given, config, numbers)
    return [[replace(c, text=inside_brackets(c.text)) for c in captions] for captions in found]


@torch.inference_mode()
def continue_sequence(
    model: ClipGPT, segments: Sequence[Segment], embeddings: Tensor, config: DecodeConfig
) -> list[Caption]:
    """What may follow a sequence of text and embeddings.

    Args:
        model: in evaluation mode.
        segments: text and numbers of embeddings, in any order.
        embeddings: [C, D].
        config: how to decode.
    Returns:
        texts, best first; the end-of-text that ended them is left out.
    Raises:
        ClipcapError: the sequence and its continuation are longer than the language model takes.
    """
    batch = model.layout.batch([segments], embeddings).inputs(model.head.weight.device)
    names = ("input_ids", "embeddings", "clip_places", "clip_rows")
    prefix = model.inputs_embeds(**{name: batch[name] for name in names})  # [1, T, E]
    return continue_prefix(model, model.layout.tokenizer, prefix, config)[0]
