"""Columns of marks: to which split a row's image belongs, and whether its captions are to be used."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

from clipcap.sources.faults import RowError
from clipcap.sources.names import (
    CAPTION_NAMES,
    ID_NAMES,
    IMAGE_NAMES,
    SPLIT_NAMES,
    UNUSABLE_FLAGS,
    plain,
    split_name,
    split_word,
)
from clipcap.sources.tables import Table

_SAMPLE_ROWS = 100
_YES = ("true", "t", "1", "1.0", "yes", "y", "x", "on", "\u2713", "\u2714", "wahr", "vrai", "verdadero", "vero")
_NO = ("false", "f", "0", "0.0", "no", "n", "-", "off", "", "nan", "none", "null", "falsch", "faux", "falso")
_ACCEPTED = ("accept", "accepted", "approve", "approved", "submitted", "pending")
_REJECTED = ("reject", "rejected", "ignore", "ignored", "skip", "skipped", "discard", "discarded", "cancelled")
# A column of its own for a split: `train`, `is_train`, `in_train`, `split_train`, `train_mask`, `is_training_image`.
_SPLIT_FLAG = re.compile(r"(?:is|in|for|use|split|set)?(.+?)(?:mask|flag|split|image)?\??")
_ELSE = {"train": "test", "val": "train", "test": "train"}  # where one column of yes and no is all there is


@dataclass(frozen=True)
class Marks:
    """The columns of a table that say something about its rows."""

    split: str | None  # holds words for splits
    splits: dict[str, str]  # columns of yes and no, and the split of each
    unusable: list[str]  # flags of captions that are not to be used, and verdicts on them

    @property
    def columns(self) -> list[str]:
        """All of them."""
        return [*([] if self.split is None else [self.split]), *self.splits, *self.unusable]

    def split_of(self, row: dict[str, Any], otherwise: str | None = None) -> str | None:
        """The split of a row; `otherwise` where it says nothing.

        Raises:
            RowError: an unknown split, or several.
        """
        if self.split is not None and not _is_empty(row[self.split]):
            return split_name(str(row[self.split]))
        found = {split for name, split in self.splits.items() if _is_true(row[name])}
        if len(found) > 1:
            raise RowError(f"in several splits: {', '.join(sorted(found))}", "in several splits")
        if found:
            return found.pop()
        return _ELSE[next(iter(self.splits.values()))] if len(self.splits) == 1 else otherwise

    def unusable_by(self, row: dict[str, Any]) -> str | None:
        """The mark by which a row's captions are not to be used."""
        return next((name for name in self.unusable if is_unusable(row[name])), None)


def find_marks(table: Table, others: list[str]) -> Marks:
    """The columns of marks of a table, by their names and by what they hold.

    Args:
        others: columns known to hold something else.
    """
    names = [name for name in table.columns if name not in others and name not in table.image_columns]
    sample = [cells for _, cells in itertools.islice(table.rows(*names), _SAMPLE_ROWS)]
    cells_of = {name: [cells[i] for cells in sample] for i, name in enumerate(names)}
    splits = {name: split for name in names if (split := _flagged_split(name)) and holds_flags(cells_of[name])}
    if [plain(name) for name in splits] == ["train"]:  # a railway's, among the things to be seen
        splits = {}
    verdicts = [name for name in names if _all_filled(cells_of[name], (*_ACCEPTED, *_REJECTED))]
    named = next((name for name in names if _holds_splits(name, cells_of[name])), None)
    flags = [name for name in names if plain(name) in UNUSABLE_FLAGS]
    return Marks(named, {} if named is not None else splits, [*flags, *verdicts])


def _is_true(value: Any) -> bool:
    """Whether a flag is set, however it is written."""
    if isinstance(value, str):
        return value.strip().lower() in _YES
    return value is not None and value == value and bool(value)


def is_unusable(value: Any) -> bool:
    """Whether a flag of unusable captions is set, or a verdict rejects them."""
    return _is_true(value) or (isinstance(value, str) and value.strip().lower() in _REJECTED)


def _flagged_split(name: str) -> str | None:
    match = _SPLIT_FLAG.fullmatch(plain(name))
    return split_word(match[1]) if match else None


def holds_flags(cells: list) -> bool:
    """Whether cells hold yes and no, however they are written, and nothing else."""
    filled = [str(cell).strip().lower() for cell in cells if not _is_empty(cell)]
    return bool(filled) and all(cell in (*_YES, *_NO) for cell in filled)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or not str(value).strip()


def _all_filled(cells: list, words: tuple[str, ...]) -> bool:
    filled = [cell for cell in cells if not _is_empty(cell)]
    return bool(filled) and all(isinstance(cell, str) and cell.strip().lower() in words for cell in filled)


def _holds_splits(name: str, cells: list) -> bool:
    """Whether a column holds words for splits: several, or one in a column called so; `split` holds nothing else."""
    if name == "split":
        return True
    filled = [cell for cell in cells if not _is_empty(cell)]
    found = {split_word(cell) if isinstance(cell, str) else None for cell in filled}
    if not found or None in found:
        return False
    other = (*CAPTION_NAMES, *IMAGE_NAMES, *ID_NAMES)
    return plain(name) in SPLIT_NAMES or (len(found) > 1 and plain(name) not in other)
