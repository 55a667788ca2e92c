"""Sequences in which CLIP embeddings stand inside text: their segments, the tokens that mark them, batches of them.

The words and tokens are those of LAION's General-GPT ("CLIP-GPT"), without blanks around the marks:

    [CLIP IN] embedding [\\CLIP IN]Caption: [a cat on a mat.]<end of text>
    Caption: [a cat on a mat.]. [CLIP OUT][\\CLIP OUT]<end of text>

An embedding takes the place of one token. One is predicted from the last hidden state at `[CLIP OUT]`. Sequences may
hold any number of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AddedToken
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.errors import ClipcapError
from clipcap.models.base import IGNORE
from clipcap.models.language_model import end_of_text, token_ids

MARKS = ("[CLIP IN]", "[\\CLIP IN]", "[CLIP OUT]", "[\\CLIP OUT]")
OPENING, CLOSING, STOPPED = "Caption: [", "]", "]."


@dataclass(frozen=True)
class TokenSpan:
    """Text as token ids; `learnt` where they are labels too."""

    ids: Sequence[int]
    learnt: bool = True


@dataclass(frozen=True)
class ClipIn:
    """An embedding to read: the number of a row of those that come with the batch."""

    row: int


@dataclass(frozen=True)
class ClipOut:
    """An embedding to predict: the number of the row it should be; None where it is only asked for."""

    row: int | None = None


Segment = str | TokenSpan | ClipIn | ClipOut  # a str is text to learn


@dataclass
class InterleavedBatch:
    """B sequences, padded on the right, and the C embeddings that they read and predict.

    Places are numbers b · T + t. No position sees padding, so that no mask is needed.
    """

    input_ids: Tensor  # [B, T]; any id at the place of an embedding
    labels: Tensor  # [B, T], IGNORE where there is nothing to learn
    embeddings: Tensor  # [C, D] float32
    clip_places: Tensor  # [K], of the embeddings read
    clip_rows: Tensor  # [K], which they are
    out_places: Tensor  # [O], of the `[CLIP OUT]` tokens
    out_rows: Tensor  # [O], what is to be predicted there; IGNORE where there is nothing to compare with

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What the model takes."""
        return {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(InterleavedBatch)}


@dataclass
class _Row:
    """One sequence: token ids, labels, and where embeddings are read and predicted."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    clips: list[tuple[int, int]] = field(default_factory=list)  # (position, row)
    outs: list[tuple[int, int]] = field(default_factory=list)

    def add(self, ids: Sequence[int], learnt: bool) -> None:
        self.ids += ids
        self.labels += ids if learnt else [IGNORE] * len(ids)


class Layout:
    """The marks and the template as tokens of one tokenizer, to which the marks are added where it lacks them.

    From then on the tokenizer reads the marks and end-of-text in a caption as plain text: only the layout sets them.
    """

    def __init__(self, tokenizer: Tokenizer):
        known: dict[str, int] = cast(Any, tokenizer).get_added_vocab()  # their common base does not declare it
        new = [AddedToken(mark, special=True, normalized=False) for mark in MARKS if mark not in known]
        tokenizer.add_tokens(new, special_tokens=True)
        tokenizer.split_special_tokens = True
        self.tokenizer = tokenizer
        self.marks = cast(list[int], tokenizer.convert_tokens_to_ids(list(MARKS)))
        self.end = end_of_text(tokenizer)
        self.opening, self.closing, self.stopped = (self.ids(text) for text in (OPENING, CLOSING, STOPPED))

    def ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        return token_ids(self.tokenizer, text)

    @property
    def overhead(self) -> int:
        """Positions that a caption takes besides its tokens and its end, in the direction that takes more."""
        return len(self.opening) + max(3 + len(self.closing), len(self.stopped) + 2)

    def caption_prompt(self, row: int) -> list[Segment]:
        """`[CLIP IN] embedding [\\CLIP IN]Caption: [`, which a caption continues."""
        return [ClipIn(row), TokenSpan(self.opening, learnt=False)]

    def clip_to_caption(self, row: int, caption: Sequence[int], whole: bool = True) -> list[Segment]:
        """The caption of an embedding; of one that was cut (not `whole`) the bracket's place is not learnt."""
        return [*self.caption_prompt(row), TokenSpan(caption), TokenSpan(self.closing, whole), TokenSpan([self.end])]

    def caption_to_clip(self, caption: Sequence[int], row: int | None = None, whole: bool = True) -> list[Segment]:
        """The embedding of a caption."""
        text = [TokenSpan(self.opening, learnt=False), TokenSpan(caption), TokenSpan(self.stopped, whole)]
        return [*text, ClipOut(row), TokenSpan([self.end])]

    def learnt(self, caption_tokens: int, whole: bool) -> int:
        """Label tokens of both directions of a caption."""
        ends = len(self.closing) + len(self.stopped) if whole else 0
        return 2 * caption_tokens + ends + 1 + 3  # end-of-text; marks and end-of-text

    def batch(self, sequences: Sequence[Sequence[Segment]], embeddings: Tensor) -> InterleavedBatch:
        """Sequences and the embeddings [C, D] they speak of, as a batch.

        Raises:
            ClipcapError: a sequence is empty, or names an embedding that is not there.
        """
        rows = [self._row(segments, len(embeddings)) for segments in sequences]
        input_ids = _padded([row.ids for row in rows], self.end)
        width = input_ids.shape[1]
        clips = [(b * width + t, number) for b, row in enumerate(rows) for t, number in row.clips]
        outs = [(b * width + t, number) for b, row in enumerate(rows) for t, number in row.outs]
        clip_places, clip_rows = torch.tensor(clips, dtype=torch.long).reshape(-1, 2).T
        out_places, out_rows = torch.tensor(outs, dtype=torch.long).reshape(-1, 2).T
        labels = _padded([row.labels for row in rows], IGNORE)
        return InterleavedBatch(input_ids, labels, embeddings, clip_places, clip_rows, out_places, out_rows)

    def _row(self, segments: Sequence[Segment], count: int) -> _Row:
        clip_in, clip_in_end, clip_out, clip_out_end = self.marks
        row = _Row()
        for segment in segments:
            if isinstance(segment, ClipIn | ClipOut) and segment.row is not None and not 0 <= segment.row < count:
                raise ClipcapError(f"{segment}: there are {count} embeddings, numbered from 0")
            match segment:
                case str():
                    row.add(self.ids(segment), learnt=True)
                case TokenSpan(ids, learnt):
                    row.add(list(ids), learnt)
                case ClipIn(number):
                    row.clips.append((len(row.ids) + 1, number))
                    row.add([clip_in, self.end, clip_in_end], learnt=False)
                case ClipOut(number):
                    row.outs.append((len(row.ids), IGNORE if number is None else number))
                    row.add([clip_out, clip_out_end], learnt=True)
        if not row.ids:
            raise ClipcapError("a sequence without a segment: give text or an embedding")
        return row


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """[B, T], as long as the longest."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def inside_brackets(text: str) -> str:
    """The caption that a text begins with: up to the bracket that closes the prompt's, brackets within it kept."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth == 0:
            return text[:place]
    return text.removesuffix(CLOSING)
