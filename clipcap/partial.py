"""Rows of a feature file that is still being made: written batch by batch, safe against kills at any instant."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import ClipcapError

FINGERPRINT, ROWS = "fingerprint.json", "rows.bin"


class PartialRows:
    """`OUT.partial/`: all rows in one file of fixed size, and per process a log of the batches that are complete.

    A batch's rows reach the disk before its line in the log; a line that a kill has cut short does not count.

    Args:
        out: the feature file in the making.
        fingerprint: identifies the command's work.
        rows, dim, dtype: N, D and the stored number type.
        rank: number of this process.
    """

    def __init__(self, out: Path, fingerprint: str, rows: int, dim: int, dtype: torch.dtype, rank: int):
        self.folder = out.with_name(out.name + ".partial")
        self.fingerprint, self.shape, self.rank = fingerprint, (rows, dim), rank
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))

    def create(self) -> None:
        """Start, or check that the work found belongs to this command.

        Raises:
            ClipcapError: it is another command's, or the folder cannot be written.
        """
        path = self.folder / FINGERPRINT
        if path.is_file():
            if json.loads(path.read_text(encoding="utf-8") or "null") == self.fingerprint:
                return
            raise ClipcapError(
                f"{self.folder} holds the unfinished work of another command (other encoder, captions, images or "
                f"flags): repeat that command to finish it, delete the folder, or choose another --out"
            )
        try:
            shutil.rmtree(self.folder, ignore_errors=True)  # killed before it had a fingerprint: nothing is in it
            self.folder.mkdir(parents=True)
            with (self.folder / ROWS).open("wb") as file:
                file.truncate(self.shape[0] * self._row_bytes)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.fingerprint), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise ClipcapError(f"{self.folder}: cannot be written: {error.strerror}") from error

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    def _entries(self) -> list[dict]:
        entries = []
        for log in sorted(self.folder.glob("done-*.jsonl")):
            for line in log.read_bytes().split(b"\n")[:-1]:  # what follows the last line end was cut short
                try:
                    entries.append(json.loads(line))
                except ValueError:
                    continue  # a cut line that a later run wrote on after
        return entries

    def done(self) -> set[int]:
        """Batches that are complete."""
        return {entry["batch"] for entry in self._entries()}

    def bad(self) -> dict[int, str]:
        """Reasons of the images that could not be encoded, by row."""
        return {row: reason for entry in self._entries() for row, reason in entry["bad"]}

    def write(
        self, batch: int, rows: Sequence[int], embeddings: Tensor | None, bad: Sequence[tuple[int, str]]
    ) -> None:
        """Store a batch.

        Args:
            batch: its number in the grid.
            rows: rows of `embeddings`, ascending.
            embeddings: float32 [len(rows), D]; None where no image of the batch could be read.
            bad: (row, reason) of the others.

        Raises:
            ClipcapError: the disk is full; the batches before this one are kept.
        """
        try:
            if embeddings is not None:
                data = embeddings.numpy().astype(self.dtype)
                with (self.folder / ROWS).open("r+b") as file:
                    for row, vector in zip(rows, data):
                        file.seek(row * self._row_bytes)
                        file.write(vector.tobytes())
                    file.flush()
                    os.fdatasync(file.fileno())
            with (self.folder / f"done-{self.rank}.jsonl").open("a+b") as log:
                torn = log.tell() and _last_byte(log) != b"\n"
                line = json.dumps({"batch": batch, "bad": list(bad)}).encode()
                log.write(b"\n" * bool(torn) + line + b"\n")
                log.flush()
                os.fsync(log.fileno())
        except OSError as error:
            raise ClipcapError(
                f"{self.folder}: cannot be written: {error.strerror}; make room and run the same command again, "
                f"it goes on where it stopped"
            ) from error

    def rows(self, numbers: Sequence[int]) -> np.ndarray:
        """Rows [len(numbers), D] of the finished file."""
        stored = np.memmap(self.folder / ROWS, self.dtype, "r", shape=self.shape)
        # All of them, in order: no copy, so that a set larger than the memory can be written in shards.
        return stored if len(numbers) == self.shape[0] else stored[np.asarray(numbers)]

    def remove(self) -> None:
        """Delete the folder, once the feature file is written."""
        shutil.rmtree(self.folder)


def _last_byte(log) -> bytes:  # noqa: ANN001
    log.seek(-1, os.SEEK_END)
    return log.read(1)
