"""Texts as tokens and last hidden states of a text model, and which tokens belong to which word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from clipcap.errors import ClipcapError
from clipcap.runtime.bundled import LM, bundled
from clipcap.runtime.hub import load_pretrained

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Tokens:
    """B texts as ids, padded to one length.

    Attributes:
        input_ids, attention_mask: int64 [B, T].
        words: for each text the number of the blank-separated word that each token belongs to; -1 for special
            tokens and padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    words: list[list[int]]


class TextModel:
    """A frozen text model of transformers."""

    def __init__(self, name: str, max_tokens: int, device: torch.device | str = "cpu"):
        place, flag = bundled(name, LM), "--text_model"
        self.name, self.max_tokens, self.device = name, max_tokens, torch.device(device)
        self.tokenizer = load_pretrained(AutoTokenizer, place, "tokenizer", flag)
        if not self.tokenizer.is_fast:
            raise ClipcapError(
                f"{flag} {name}: its tokenizer does not give the places of words: choose another model"
            )
        if self.tokenizer.pad_token_id is None:  # GPT-2's
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        self.tokenizer.padding_side = "right"
        options = {"dtype": torch.float32, "output_loading_info": True}
        network, info = load_pretrained(AutoModel, place, "text model", flag, **options)
        needed = [key for key in info["missing_keys"] if "pooler" not in key]
        if needed:
            raise ClipcapError(f"{flag} {name}: its weights lack {min(needed)}: the files are incomplete")
        self.network = getattr(network, "text_model", network).to(self.device).eval().requires_grad_(False)
        self.width = self.network.config.hidden_size

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """B texts → ids [B, max_tokens], cut and padded to the longest length."""
        encoded = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        words = []
        for row, text in enumerate(texts):
            ends = [match.end() for match in _WORD.finditer(text)]
            offsets, special = encoded["offset_mapping"][row].tolist(), encoded["special_tokens_mask"][row].tolist()
            real = encoded["attention_mask"][row].tolist()
            words.append([
                next((number for number, last in enumerate(ends) if end <= last), -1)
                if there and not mark and end > start else -1
                for (start, end), mark, there in zip(offsets, special, real, strict=True)
            ])  # fmt: skip
        return Tokens(encoded["input_ids"], encoded["attention_mask"], words)

    def hidden_states(self, tokens: Tokens, mask: bool) -> Tensor:
        """Tokens → float32 [B, T, H]; without `mask` padding is read like words, as the original does."""
        attention = tokens.attention_mask if mask else torch.ones_like(tokens.attention_mask)
        with torch.inference_mode():
            output = self.network(
                input_ids=tokens.input_ids.to(self.device), attention_mask=attention.to(self.device)
            )
        return output.last_hidden_state.float().cpu()

    def batches(self, texts: Sequence[str], size: int, mask: bool) -> Iterator[tuple[Tokens, Tensor]]:
        """(tokens, hidden states [B, T, H]) of all texts, `size` at a time."""
        for first in range(0, len(texts), size):
            tokens = self.tokenize(texts[first : first + size])
            yield tokens, self.hidden_states(tokens, mask)
