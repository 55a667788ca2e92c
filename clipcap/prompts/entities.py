"""A user's list of words: which of them a caption names, and which of them fit an image."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import Encoder

LEAST = 0.2  # probability from which a word is named
TOGETHER = 256  # words encoded at once
# Thai to Khmer, kana, Han and pictographs: scripts without spaces, of which each sign is a part.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2600-\u27bf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U0001f300-\U0001faff\U00020000-\U0003ffff"
)
# Vowel signs and accents, which Python does not count as letters.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963"
    "\u0966-\u0dff\u1ab0-\u1aff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
)
PART = re.compile(f"[{_ALONE}]|(?:[^\\W{_ALONE}]|[{_MARKS}])+")  # of a word


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

        Of words that differ in case alone the first is taken: they would share their probability.

        Raises:
            ClipcapError: it cannot be read, holds no words, or several in its only line.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ClipcapError(f"--entities {path}: cannot be read ({reason}): one word a line") from error
        words = [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]
        if not words:
            raise ClipcapError(f"--entities {path}: holds no words: one word a line")
        if len(words) == 1 and re.search("[,;]", words[0]):
            raise ClipcapError(f"--entities {path}: holds a single line with several words: one word a line")
        first: dict[str, str] = {}
        for word in words:
            first.setdefault(_plain(word), word)
        return cls(list(first.values()))

    @cached_property
    def _by_form(self) -> dict[str, str]:
        """The word of each of its forms in lower case; a form that is a word of the list itself is that word's."""
        plurals = {
            _plain(form): word for word in reversed(self.words) for form in (word + "s", word + "es", plural(word))
        }
        return plurals | {_plain(word): word for word in self.words}

    @cached_property
    def _most(self) -> int:
        """Parts of the longest word: tea cup has two."""
        return max(len(PART.findall(form)) for form in self._by_form)

    def _found(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where a text has any form of a word, and the word; the longest one where several begin."""
        parts, number = list(PART.finditer(text)), 0
        while number < len(parts):
            start = parts[number].start()
            for count in range(min(self._most, len(parts) - number), 0, -1):
                end = parts[number + count - 1].end()
                word = self._by_form.get(_plain(text[start:end]))
                if word is not None:
                    yield start, end, word
                    number += count - 1
                    break
            number += 1

    def named_in(self, captions: Sequence[str]) -> list[str]:
        """The words that captions name, each once, in their order."""
        return list(dict.fromkeys(word for caption in captions for _, _, word in self._found(caption)))

    def renamed(self, text: str, word: str, other: str) -> str:
        """The text with one of its words exchanged for another, in the number and with the article that it needs."""
        pieces, done = [], 0
        for start, end, found in self._found(text):
            if found != word:
                continue
            form, before = text[start:end], text[done:start]
            new = other if _plain(form) == _plain(word) else plural(other)
            if form[0].isupper() and not word[0].isupper():
                new = new[0].upper() + new[1:]
            article = "an" if new[0].lower() in "aeiou" else "a"
            pieces += [re.sub(r"\b(a)n?(\s+)$", rf"\1{article[1:]}\2", before, flags=re.IGNORECASE), new]
            done = end
        return "".join([*pieces, text[done:]])

    def encoded(self, encoder: Encoder) -> Tensor:
        """The embeddings of the words, of unit length, [W, D].

        Raises:
            ClipcapError: the encoder has no text tower.
        """
        parts = [encoder.encode_texts(self.words[i : i + TOGETHER]) for i in range(0, len(self.words), TOGETHER)]
        return F.normalize(torch.cat(parts).float(), dim=1).cpu()


def _plain(text: str) -> str:
    """As words are compared: in lower case, with single spaces, accents joined to their letters."""
    return unicodedata.normalize("NFC", " ".join(text.lower().split()))


def plural(word: str) -> str:
    """The plural of an English noun that has a regular one."""
    if re.search("[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return word + ("es" if re.search("(s|x|z|ch|sh|tomato|potato)$", word) else "s")


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
