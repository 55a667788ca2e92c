"""Features in memory or on disk: embeddings by row, captions that point at rows, and what is known of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.encoders.token_spec import TokenLayout
from clipcap.models.given import Given, with_tokens
from clipcap.runtime.disk_arrays import GrowingArray, blocks, in_order, scratch

FORMAT_VERSION = 1
Index = Sequence[int] | np.ndarray | Tensor | slice
PromptTokens = tuple[Tensor | None, Tensor | None]  # ids int64 [B, H] and mask bool [B, H]


@dataclass(frozen=True)
class FeatureMeta:
    """What a feature file says of itself; files of the original ClipCap say nothing."""

    encoder: str | None = None  # "ViT-B/32", "hf:...", a path
    encoder_weights_id: str | None = None  # fingerprint of the encoder's weights
    encoder_guessed: bool = False  # from the width
    normalized: bool = False  # rows have an L2 norm of 1
    source: str | None = None  # what was parsed
    dtype: str | None = None
    clipcap_version: str | None = None
    format_version: int = FORMAT_VERSION
    tokens: TokenLayout | None = None  # beside the embeddings, in folders alone

    def stored(self) -> dict[str, Any]:
        """As files hold it: without `tokens` where there are none, as files were before there were any."""
        content = asdict(self)
        return content if self.tokens else {name: content[name] for name in content if name != "tokens"}

    @classmethod
    def from_file(cls, content: Any, path: Path) -> FeatureMeta:
        """The meta stored in the file at `path`, checked; entries of later versions are passed over."""
        known = {f.name: f.default for f in fields(cls)}
        if not isinstance(content, dict):
            raise ClipcapError(f"{path}: its meta is damaged: parse the images again")
        given = {name: content[name] for name in known if name in content}
        if tokens := given.pop("tokens", None):
            try:
                tokens = TokenLayout.from_file(tokens)
            except ValueError as error:
                raise ClipcapError(f"{path}: meta tokens is damaged: parse the images again") from error
        for name, value in given.items():
            if type(value) is not type(known[name]) and not (known[name] is None and type(value) is str):
                raise ClipcapError(f"{path}: meta {name} is damaged: parse the images again")
        meta = cls(**given, tokens=tokens or None)
        if meta.format_version > FORMAT_VERSION:
            raise ClipcapError(
                f"{path}: is of feature format {meta.format_version}, this clipcap knows {FORMAT_VERSION}: "
                "update clipcap"
            )
        return meta


class Sliced(Protocol):
    """A column that is written a slice at a time; its values may be computed on demand."""

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:
        """The values of these rows: a sequence or an array."""
        ...


@dataclass(frozen=True)
class LazyColumn:
    """A column whose values are computed on demand.

    Args:
        count: of the rows.
        make: computes the values from a first row to before a last one.
    """

    count: int
    make: Callable[[int, int], Sequence | np.ndarray]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> Sequence | np.ndarray:
        return self.make(*rows.indices(self.count)[:2])


class Content(NamedTuple):
    """Rows to be written: images with their captions."""

    embeddings: Sliced  # [N, D] float16 or float32, also a memory map
    image_ids: Sliced  # texts
    image_paths: Sliced  # texts or None
    captions: Sliced  # of each row several
    tokens: Sliced | None = None  # [N, T, W] float16, for folders alone


class Rows(Protocol):
    """What embeddings can do: a tensor in memory, shards on disk, or some rows of either; so can tokens."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, D), of tokens (N, T, W)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        ...

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        """The rows of an int64 index [B], copied, or of a slice of step 1: [B, D] in any floating-point type."""
        ...


@dataclass(frozen=True)
class SelectedRows:
    """Some rows of other rows, without a copy of them."""

    base: Rows
    selected: Tensor  # int64

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D), of tokens (N, T, W)."""
        return len(self.selected), *self.base.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return self.base.dtype

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.base[self.selected[index]]


@dataclass(frozen=True, eq=False)
class Features:
    """N images as rows of width D, and M captions of them."""

    embeddings: Rows  # [N, D]
    captions: Sequence[str]  # M
    caption_rows: np.ndarray  # int64 [M], the row of each caption
    image_ids: Sequence[str]  # N; in old files several rows are of one image
    image_paths: Sequence[str | None]  # N
    meta: FeatureMeta
    path: Path
    images: np.ndarray | None = None  # int64 [N], a number for each row's image, where that is known already
    tokens: Rows | None = None  # [N, T, W]
    prompts: Callable[[np.ndarray], PromptTokens] | None = None  # of rows int64 [B]; those of a subset have none

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return int(self.embeddings.shape[1])

    @property
    def num_images(self) -> int:
        """N, the number of rows."""
        return int(self.embeddings.shape[0])

    @property
    def encoder_note(self) -> str | None:
        """A line to print where the file does not say its encoder."""
        if self.meta.encoder and not self.meta.encoder_guessed:
            return None
        taken = f"taken for {self.meta.encoder}" if self.meta.encoder else "the width of no encoder known here"
        flag_use = "overrides" if self.meta.encoder else "names it"
        return f"{self.path}: does not say its encoder; {self.dim} wide, {taken} (--clip_model_type {flag_use})"

    def rows(self, index: Index) -> Tensor:
        """Rows as float32 [B, D]; only these are read."""
        return self.embeddings[self._numbers(index)].float()

    def given(self, index: Index) -> Given:
        """What captions of these B rows are conditioned on; only these are read."""
        vectors = self.rows(index)
        given = Given(vectors) if self.tokens is None else with_tokens(vectors, self.tokens[self._numbers(index)])
        if self.prompts is None:
            return given
        ids, mask = self.prompts(self._numbers(index).numpy())
        return replace(given, prompt_ids=ids, prompt_mask=mask)

    def _numbers(self, index: Index) -> Tensor:
        """The numbers of rows, int64 [B]."""
        wanted = np.arange(*index.indices(self.num_images)) if isinstance(index, slice) else np.asarray(index)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.num_images:
            raise IndexError(f"rows are numbered 0 to {self.num_images - 1}")
        return torch.as_tensor(wanted, dtype=torch.int64)

    def without_tokens(self) -> Features:
        """The same rows, of which the embeddings alone are read."""
        return replace(self, tokens=None, meta=replace(self.meta, tokens=None))

    def captions_of(self, row: int) -> list[str]:
        """The captions of one row, in the file's order."""
        order, sorted_rows = self._caption_order
        first, last = np.searchsorted(sorted_rows, (row, row + 1))
        return [self.captions[int(i)] for i in order[first:last]]

    def captions_by_row(self, start: int = 0, stop: int | None = None) -> list[list[str]]:
        """The captions of every row from `start` on and before `stop`, lists in the file's order; all in memory."""
        stop = self.num_images if stop is None else stop
        order, rows = self._caption_order
        first, last = np.searchsorted(rows, (start, stop))
        texts = list(_take(self.captions, order[first:last]))
        ends = np.cumsum(np.bincount(rows[first:last] - start, minlength=stop - start)).tolist()
        return [texts[a:b] for a, b in pairwise([0, *ends])]

    @cached_property
    def _caption_order(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.caption_rows, kind="stable")
        return order, self.caption_rows[order]

    @cached_property
    def row_images(self) -> np.ndarray:
        """A number for each row's image, int64 [N], no larger than N: the same for all rows of one image."""
        return in_order(hashed(self.image_ids)) if self.images is None else self.images

    def count_images(self) -> int:
        """How many images have captions."""
        seen = scratch(int(self.row_images.max()) + 1, bool)
        for block in blocks(len(self.caption_rows)):
            seen[self.row_images[self.caption_rows[block]]] = True
        return int(np.count_nonzero(seen))

    @property
    def image_index(self) -> np.ndarray:
        """A number for each caption's image, int64 [M]."""
        return self.row_images[self.caption_rows]

    def subset_by_row(self, rows: np.ndarray) -> Features:
        """These rows, in this order, with the captions of them alone; no embedding and no stored text is copied.

        What is as long as the rows or the captions lies in temporary files; `rows` is kept, and may be mapped itself.
        """
        rows = np.asarray(rows, dtype=np.int64)
        position = scratch(self.num_images, np.int64)  # + 1; 0 is of those left out
        for block in blocks(len(rows)):
            position[rows[block]] = np.arange(block.start, block.stop) + 1
        if np.count_nonzero(position) != len(rows):
            raise ValueError("a row is named twice")
        kept, new_rows = GrowingArray(np.int64), GrowingArray(np.int64)
        for block in blocks(len(self.caption_rows)):
            place = position[self.caption_rows[block]]
            kept.append(block.start + np.flatnonzero(place))
            new_rows.append(place[place > 0] - 1)
        kept = kept.close()
        return replace(
            self,
            embeddings=SelectedRows(self.embeddings, torch.from_numpy(rows)),
            tokens=None if self.tokens is None else SelectedRows(self.tokens, torch.from_numpy(rows)),
            captions=_take(self.captions, kept),
            caption_rows=new_rows.close(),
            image_ids=_take(self.image_ids, rows),
            image_paths=_take(self.image_paths, rows),
            images=None if self.images is None else in_order(_copied(self.images, rows)),
            prompts=None,
        )

    def non_finite_rows(self) -> np.ndarray:
        """Rows that hold NaN or infinity; reads everything, a part at a time."""
        found = [start + np.flatnonzero(~part.isfinite().all(dim=1).numpy()) for start, part in self._parts()]
        return np.concatenate(found)

    def _parts(self, size: int = 8192) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, self.num_images, size):
            yield start, self.rows(slice(start, start + size))


def _take(values: Sequence, index: np.ndarray) -> Sequence:
    take = getattr(values, "take", None)  # of columns that lie on disk
    return [values[i] for i in index.tolist()] if take is None else take(index)


def _copied(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The values, int64, of these rows, in a temporary file where they are many."""
    found = scratch(len(rows), np.int64)
    for block in blocks(len(rows)):
        found[block] = values[rows[block]]
    return found


def hashed(ids: Sequence[str | None]) -> np.ndarray:
    """A number for each text, int64 [N], in this process the same for the same text: 8 bytes in its place."""
    return np.fromiter(map(hash, ids), np.int64, len(ids))


def looks_normalized(embeddings: Rows) -> bool:
    """Whether the first rows have an L2 norm of 1, for files that do not say."""
    first = embeddings[torch.arange(min(100, embeddings.shape[0]))].float()
    return bool(((first.norm(dim=1) - 1).abs() < 1e-2).all())
