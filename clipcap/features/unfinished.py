"""Rows of a feature file that is still being made: written batch by batch, safe against kills at any instant."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import LazyColumn
from clipcap.runtime.files import replaced_file
from clipcap.runtime.json_text import to_json

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs of one command apart there
    fcntl = None

FINGERPRINT, ROWS, CHOSEN, TOKENS = "fingerprint", "rows.bin", "chosen.bin", "tokens.bin"


class PartialRows:
    """`OUT.partial/`: all rows in one file of fixed size, and per process a log of the complete batches.

    A batch's rows reach the disk before its line in the log; a line that a kill has cut short does not count.

    Args:
        out: the feature file in the making.
        fingerprint: identifies the command's work.
        rows, dim, dtype: N, D and the stored number type.
        rank: number of this process.
        tokens: (T, W) of the float16 tokens of each row; None without.
    """

    def __init__(
        self,
        out: Path,
        fingerprint: str,
        rows: int,
        dim: int,
        dtype: torch.dtype,
        rank: int,
        tokens: tuple[int, int] | None = None,
    ):
        self.folder = out.with_name(out.name + ".partial")
        self.fingerprint, self.shape, self.dtype, self.rank = fingerprint, (rows, dim), dtype, rank
        self._numbers = np.dtype(str(dtype).removeprefix("torch."))
        self._row_bytes = dim * self._numbers.itemsize
        self._tokens = tokens
        self._row_sizes = {ROWS: self._row_bytes}  # bytes of a row in each file
        if tokens:
            self._row_sizes[TOKENS] = tokens[0] * tokens[1] * np.dtype(np.float16).itemsize

    def create(self) -> None:
        """Start, or check that the work found belongs to this command; called by one process, before the others.

        Raises:
            ClipcapError: it is another command's, or being done by another process, or the folder cannot be written.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            if not self._found():
                self._start()

    def _lock(self) -> None:
        """Refuse to work beside another run of the command; the system unlocks when this process ends."""
        if fcntl is None:
            return
        self._lock_file = (self.folder / "lock").open("a")
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by workers
        except (BlockingIOError, PermissionError) as error:
            raise ClipcapError(
                f"{self.folder}: another process is at work on it: wait for it, end it, or choose another --out"
            ) from error
        except OSError:  # a network drive without locks
            return

    def _found(self) -> bool:
        path = self.folder / FINGERPRINT
        if not path.is_file():
            return False
        if path.read_text(encoding="utf-8") == self.fingerprint:
            return self._rows_are_whole()
        raise ClipcapError(
            f"{self.folder} holds the unfinished work of another command (other encoder, captions, images or "
            f"flags): repeat that command to finish it, delete the folder, or choose another --out"
        )

    def _rows_are_whole(self) -> bool:
        """Of a file that was cut, the next write would fill the gap with zeros, and they would pass for features."""
        files = {self.folder / name: size for name, size in self._row_sizes.items()}
        return all(f.is_file() and f.stat().st_size == self.shape[0] * size for f, size in files.items())

    def _start(self) -> None:
        for log in self._logs():  # killed before there was a fingerprint, while the folder was removed, or not whole
            log.unlink()
        for name, size in self._row_sizes.items():
            with (self.folder / name).open("wb") as file:
                file.truncate(self.shape[0] * size)
        with replaced_file(self.folder / FINGERPRINT) as draft:
            draft.write_text(self.fingerprint, encoding="utf-8")

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("done-*.jsonl"))

    def _entries(self) -> list[dict]:
        entries = []
        for log in self._logs():
            for line in log.read_bytes().split(b"\n")[:-1]:  # what follows the last line end was cut short
                try:
                    entries.append(json.loads(line))
                except ValueError:
                    continue  # a cut line that a later run wrote on after
        return entries

    def done(self) -> set[int]:
        """The complete batches."""
        return {entry["batch"] for entry in self._entries()}

    def bad(self) -> dict[int, str]:
        """Reasons of the images that could not be encoded, by row."""
        return {row: reason for entry in self._entries() for row, reason in entry["bad"]}

    def remarks(self) -> dict[int, str]:
        """How images had to be shown whose numbers were no 8-bit colours, by row."""
        return {row: remark for entry in self._entries() for row, remark in entry.get("remarks", ())}

    def write(
        self,
        batch: int,
        rows: Sequence[int],
        embeddings: Tensor | None,
        bad: Sequence[tuple[int, str]],
        remarks: Sequence[tuple[int, str]] = (),
        tokens: Tensor | None = None,
    ) -> None:
        """Store a batch.

        Args:
            batch: its number in the grid.
            rows: rows of `embeddings`, ascending.
            embeddings: [len(rows), D]; None where no image of the batch could be read.
            bad: (row, reason) of the others.
            remarks: (row, how it had to be shown) of some.
            tokens: float16 [len(rows), T, W].

        Raises:
            ClipcapError: the disk is full; the batches before this one are kept.
        """
        with self._writing():
            for name, values in ((ROWS, embeddings), (TOKENS, tokens)):
                if values is not None:
                    self._write_rows(name, rows, values.numpy())
            with (self.folder / f"done-{self.rank}.jsonl").open("a+b") as log:
                torn = log.tell() and _last_byte(log) != b"\n"
                entry = {"batch": batch, "bad": list(bad)} | ({"remarks": list(remarks)} if remarks else {})
                line = to_json(entry).encode()
                log.write(b"\n" * bool(torn) + line + b"\n")
                _to_disk(log)

    def _write_rows(self, name: str, rows: Sequence[int], values: np.ndarray) -> None:
        """Write these rows of a file, and wait until they are on the disk."""
        with (self.folder / name).open("r+b") as file:
            for row, numbers in zip(rows, values):
                file.seek(row * self._row_sizes[name])
                file.write(numbers.tobytes())
            _to_disk(file)

    def tokens(self, numbers: Sequence[int]) -> LazyColumn | None:
        """Tokens float16 [len(numbers), T, W] of the finished file, on disk; None without."""
        if self._tokens is None:
            return None
        stored = np.memmap(self.folder / TOKENS, np.float16, "r", shape=(self.shape[0], *self._tokens))
        index = np.asarray(numbers)
        return LazyColumn(len(index), lambda start, stop: stored[index[start:stop]])

    def rows(self, numbers: Sequence[int]) -> np.ndarray:
        """Rows [len(numbers), D] of the finished file, on disk: a set larger than the memory can be written.

        Raises:
            ClipcapError: the disk is full; the rows are kept.
        """
        stored = np.memmap(self.folder / ROWS, self._numbers, "r", shape=self.shape)
        if len(numbers) == self.shape[0]:
            return stored
        part_rows = max(1, (64 << 20) // self._row_bytes)
        with self._writing(), (self.folder / CHOSEN).open("wb") as file:
            for start in range(0, len(numbers), part_rows):
                file.write(stored[np.asarray(numbers[start : start + part_rows])].tobytes())
        return np.memmap(self.folder / CHOSEN, self._numbers, "r", shape=(len(numbers), self.shape[1]))

    def remove(self) -> None:
        """Delete the folder, once the feature file is written; cut short, it counts as work not started."""
        (self.folder / FINGERPRINT).unlink()
        if fcntl is not None:
            self._lock_file.close()
        shutil.rmtree(self.folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what the system says of full disks and forbidden places into one line."""
        try:
            yield
        except OSError as error:
            raise ClipcapError(
                f"{self.folder}: cannot be written ({error.strerror or error}): make room or choose another --out; "
                f"the same command, run again, continues where it stopped"
            ) from error


def _to_disk(file) -> None:  # noqa: ANN001
    file.flush()
    os.fsync(file.fileno())


def _last_byte(log) -> bytes:  # noqa: ANN001
    log.seek(-1, os.SEEK_END)
    return log.read(1)
