"""Rows that cannot be used: counted by reason, the first of each kind named, and no reason to give up the others."""

from __future__ import annotations

from collections import Counter

from clipcap.errors import ClipcapError
from clipcap.runtime.text import counted


class RowError(ClipcapError):
    """Why a row cannot be used; `kind` is the same for all rows with the same fault."""

    def __init__(self, why: str, kind: str | None = None):
        super().__init__(why)
        self.kind = kind or why


class Faults:
    """The rows of a set that a reader leaves out."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, where: str, why: str | ClipcapError, kind: str | None = None) -> None:
        """Count a row; `kind` groups it with others (default: the kind of a RowError, else its reason)."""
        kind = str(kind or getattr(why, "kind", None) or why)
        self._first.setdefault(kind, f"{where}: {why}")
        self._counts[kind] += 1

    def notes(self) -> list[str]:
        """A line for each kind, with the first row of it."""
        lines = []
        for kind, count in self._counts.items():
            more = f" (and {count - 1:,} more like it)" if count > 1 else ""
            lines.append(f"{counted(count, 'row')} left out: {self._first[kind]}{more}")
        return lines
