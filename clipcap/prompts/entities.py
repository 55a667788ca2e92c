"""A user's list of words: which of them a caption names, and which of them fit an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import Encoder

LEAST = 0.2  # probability from which a word is named
TOGETHER = 256  # words encoded at once


class Entities:
    """Words, each with its ways to be written, such as its plural.

    Args:
        words: in the user's order, each once.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)

    @classmethod
    def read(cls, path: str | Path) -> Entities:
        """A file of words or short names, one a line; empty lines and those behind a # are passed over.

        Raises:
            ClipcapError: it cannot be read, or holds no words.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ClipcapError(f"--entities {path}: cannot be read ({reason}): one word a line") from error
        words = [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]
        if not words:
            raise ClipcapError(f"--entities {path}: holds no words: one word a line")
        return cls(list(dict.fromkeys(words)))

    @cached_property
    def _pattern(self) -> re.Pattern:
        """Longer words win; a plural in s or es is the word's own."""
        longest = sorted(self.words, key=len, reverse=True)
        return re.compile(rf"\b({'|'.join(map(re.escape, longest))})(?:e?s)?\b", re.IGNORECASE)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return {word.lower(): word for word in self.words}

    def named_in(self, captions: Sequence[str]) -> list[str]:
        """The words that captions name, each once, in their order."""
        found = (self._by_name[match.lower()] for caption in captions for match in self._pattern.findall(caption))
        return list(dict.fromkeys(found))

    def encoded(self, encoder: Encoder) -> Tensor:
        """The embeddings of the words, of unit length, [W, D].

        Raises:
            ClipcapError: the encoder has no text tower.
        """
        parts = [encoder.encode_texts(self.words[i : i + TOGETHER]) for i in range(0, len(self.words), TOGETHER)]
        return F.normalize(torch.cat(parts).float(), dim=1).cpu()


def fitting(images: Tensor, words: Tensor, scale: float, most: int) -> list[list[tuple[int, float]]]:
    """The likeliest words of each image, by the softmax of `scale` times the cosine; those below 0.2 are left out.

    Args:
        images: [B, D], of any norm.
        words: [W, D], of norm 1.
        scale: the encoder's own, which is 100 in CLIP.
        most: words of an image.
    Returns:
        for each image (number of the word, its probability), best first.
    """
    shares = (scale * F.normalize(images.float().cpu(), dim=1) @ words.T).softmax(dim=1)  # [B, W]
    best, number = shares.topk(min(most, len(words)), dim=1)
    return [
        [(word, share) for word, share in zip(row, row_shares) if share >= LEAST]
        for row, row_shares in zip(number.tolist(), best.tolist())
    ]
