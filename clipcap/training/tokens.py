"""Captions → tokens, in streaming passes: in memory where they are few, else on disk, kept beside the features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import BinaryIO, cast

import numpy as np
import tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.features.large_folder import StoredCaptions
from clipcap.features.stored_texts import ChosenTexts
from clipcap.models.language_model import end_of_text
from clipcap.runtime.disk_arrays import GrowingArray, blocks, cached_arrays, scratch, write_arrays
from clipcap.runtime.progress import no_bar

TOGETHER = 10_000  # captions tokenised at a time
MANY = 50_000  # captions from which a bar shows how far it is


@dataclass(frozen=True)
class TokenizedCaptions:
    """The tokens of M captions, cut to a length."""

    tokens: np.ndarray  # uint16 or int32, all captions one after the other
    starts: np.ndarray  # int64 [M + 1]
    truncated: int  # captions that were longer


@dataclass(frozen=True)
class TokenRecipe:
    """How captions become tokens.

    Args:
        tokenizer: of the language model.
        max_tokens: captions are cut to this many, the end-of-text token included.
        reference: the original's: no end-of-text token, captions cut to mean + 10 standard deviations of the set.
    """

    tokenizer: Tokenizer
    max_tokens: int
    reference: bool

    @property
    def end(self) -> list[int]:
        """The token after a caption that is not cut."""
        return [] if self.reference else [end_of_text(self.tokenizer)]

    @cached_property
    def dtype(self) -> np.dtype:
        """Of the tokens: two bytes hold GPT-2's."""
        return np.dtype(np.uint16 if max(self.tokenizer.get_vocab().values()) < 1 << 16 else np.int32)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of captions, their ends included."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is None:
            lists = cast(list[list[int]], self.tokenizer(texts, add_special_tokens=False)["input_ids"])
            return [ids + self.end for ids in lists]
        fast.no_truncation()
        fast.no_padding()
        return [one.ids + self.end for one in fast.encode_batch_fast(texts, add_special_tokens=False)]

    def fingerprint(self, captions: str) -> str:
        """Tells from the captions, whose own fingerprint is given, the tokenizer, and all else here."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = fast.to_str() if fast else repr(sorted(self.tokenizer.get_vocab().items()))
        kind = (type(self.tokenizer).__name__, tokenizers.__version__, self.end, self.max_tokens, self.reference)
        parts = (captions, vocabulary, repr(kind))
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def tokenise(captions: Sequence[str], recipe: TokenRecipe) -> TokenizedCaptions:
    """The tokens of captions; those of a feature folder are kept in it and found again.

    Args:
        captions: M texts.
        recipe: how they become tokens.
    """
    if isinstance(captions, StoredCaptions):
        return _cached(captions, recipe)
    base = getattr(captions, "base", None)
    if isinstance(captions, ChosenTexts) and isinstance(base, StoredCaptions) and not recipe.reference:
        return _select(_cached(base, recipe), captions.numbers, recipe)
    return _tokenize(captions, recipe)


def _cached(captions: StoredCaptions, recipe: TokenRecipe) -> TokenizedCaptions:
    """The tokens of a folder: one file for each recipe, made anew when the captions have changed."""
    name = recipe.fingerprint("")[:12]
    file = cached_arrays(
        captions.cache / f"tokens-{name}.arrays",
        recipe.fingerprint(captions.fingerprint),
        partial(_write, captions, recipe),
        quiet=not captions.cached,  # the note came when the folder was opened
    )
    return TokenizedCaptions(file.arrays["tokens"], file.arrays["starts"], file.facts["truncated"])


def _write(captions: Sequence[str], recipe: TokenRecipe, draft: BinaryIO, fingerprint: str) -> None:
    made = _tokenize(captions, recipe)
    arrays = [("tokens", made.tokens.dtype, [made.tokens]), ("starts", np.int64, [made.starts])]
    write_arrays(draft, arrays, {"fingerprint": fingerprint, "truncated": made.truncated})


def _tokenize(captions: Sequence[str], recipe: TokenRecipe) -> TokenizedCaptions:
    """Tokenised, measured, then cut."""
    counts = scratch(len(captions), np.int32)
    whole = GrowingArray(recipe.dtype)
    hidden = no_bar(len(captions) < MANY)
    with tqdm(total=len(captions), desc="tokenising", unit="captions", leave=False, disable=hidden) as bar:
        for part in blocks(len(captions), TOGETHER):
            lists = recipe.ids(list(captions[part]))
            whole.append(np.fromiter(chain.from_iterable(lists), recipe.dtype))
            counts[part] = list(map(len, lists))
            bar.update(len(lists))
    tokens, longest = whole.close(), recipe.max_tokens
    if recipe.reference:
        longest = min(longest, reference_max_length(counts))
    truncated = sum(int(np.count_nonzero(counts[block] > longest)) for block in blocks(len(counts)))
    if truncated:  # a cut caption loses its end-of-text token: it did not end there
        tokens = _cut(tokens, counts, longest)
    return TokenizedCaptions(tokens, _starts(len(counts), lambda block: counts[block].clip(max=longest)), truncated)


def _cut(tokens: np.ndarray, counts: np.ndarray, longest: int) -> np.ndarray:
    """The first tokens of each caption."""
    kept, start = GrowingArray(tokens.dtype), 0
    for block in blocks(len(counts)):
        own = counts[block].astype(np.int64)
        position = np.arange(own.sum()) - np.repeat(own.cumsum() - own, own)
        kept.append(tokens[start : start + len(position)][position < longest])
        start += len(position)
    return kept.close()


def _starts(count: int, lengths: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Where each caption begins, and where the last ends, int64 [count + 1]."""
    starts = scratch(count + 1, np.int64)
    for block in blocks(count):
        starts[block.start + 1 : block.stop + 1] = starts[block.start] + lengths(block).cumsum(dtype=np.int64)
    return starts


def _select(whole: TokenizedCaptions, numbers: np.ndarray, recipe: TokenRecipe) -> TokenizedCaptions:
    """The tokens of some of the captions."""
    starts = _starts(len(numbers), lambda block: whole.starts[numbers[block] + 1] - whole.starts[numbers[block]])
    tokens, truncated = GrowingArray(whole.tokens.dtype), 0
    for block in blocks(len(numbers)):
        first, lengths = whole.starts[numbers[block]], np.diff(starts[block.start : block.stop + 1])
        places = np.arange(lengths.sum()) + np.repeat(first - lengths.cumsum() + lengths, lengths)
        tokens.append(whole.tokens[places])
        last = whole.tokens[first + lengths - 1]
        truncated += int(np.count_nonzero((lengths == recipe.max_tokens) & (last != recipe.end[0])))
    return TokenizedCaptions(tokens.close(), starts, truncated)


def reference_max_length(counts: np.ndarray) -> int:
    """The original's padded length: mean + 10 standard deviations (unbiased) of the token counts."""
    total = squares = longest = 0
    for block in blocks(count := len(counts)):
        part = counts[block].astype(np.int64)
        total, squares, longest = total + int(part.sum()), squares + int(part @ part), max(longest, int(part.max()))
    variance = (squares - total * total / count) / (count - 1) if count > 1 else 0.0
    return min(int(total / count + 10 * max(variance, 0.0) ** 0.5), longest)
