"""The text of a prompt as token ids (SmallCap, arXiv 2209.15323, section 3; ViECap, arXiv 2307.16525)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from clipcap.models.config import Prompts

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase as Tokenizer

TEXT_TOKENS = 25  # of a retrieved caption or of a word, which has many in rarer scripts; the rest is cut
MOST_WORDS = 3
OPENING, BETWEEN, CLOSING = "Similar images show", "\n\n", "\n\nThis image shows\n\n"
WORDS_OPENING, WORDS_BETWEEN, WORDS_CLOSING = "There are ", ", ", " in the picture.\n\n"


class PromptText:
    """Turns retrieved captions, or words, into the tokens of a prompt.

    Args:
        tokenizer: of the language model.
        kind: captions or entities.
        count: captions of a prompt.
        longest: tokens of the longest prompt; None for as many as uncut captions need.
    """

    def __init__(self, tokenizer: Tokenizer, kind: Prompts, count: int, longest: int | None = None):
        self.tokenizer = tokenizer
        pieces = (OPENING, BETWEEN, CLOSING) if kind == "captions" else (WORDS_OPENING, WORDS_BETWEEN, WORDS_CLOSING)
        self._opening, self._between, self._closing = self._ids(pieces)
        self._leads = kind == "captions"  # what separates texts also stands before the first
        self.count = count if kind == "captions" else MOST_WORDS
        self._fixed = len(self._opening) + len(self._closing)
        self._room = None if longest is None else longest - self._fixed
        limit = TEXT_TOKENS
        if self._room is not None and kind == "captions":
            limit = min(limit, self._room // self.count - len(self._between))
        self.limit = max(limit, 0)

    def longest(self, texts: Sequence[str]) -> int:
        """Tokens of the longest prompt of such texts."""
        most = min(self.limit, max(map(len, self._ids(texts)), default=self.limit))
        return self._fixed + self.count * (most + len(self._between))

    def prompts(self, texts: Sequence[Sequence[str]]) -> list[list[int]]:
        """The tokens of the prompt of each image; none where it has no texts.

        Captions too long are cut, and words for which there is no room are left out: half of a word is another one.
        """
        flat = iter(self._ids([text for several in texts for text in several[: self.count]]))
        found = []
        for several in texts:
            ids: list[int] = []
            for _ in several[: self.count]:
                more = [*(self._between if ids or self._leads else []), *next(flat)[: self.limit]]
                ids += more if self._room is None or len(ids) + len(more) <= self._room else []
            found.append([*self._opening, *ids, *self._closing] if ids else [])
        return found

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return cast(list[list[int]], self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor | None, Tensor | None]:
    """Prompts as ids int64 [B, H] and mask bool [B, H], padding before shorter ones; None where all are empty."""
    longest = max(map(len, prompts), default=0)
    if not longest:
        return None, None
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if prompt:
            ids[row, -len(prompt) :], mask[row, -len(prompt) :] = torch.tensor(prompt), True
    return ids, mask
