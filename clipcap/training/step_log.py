"""`steps.jsonl`: loss, learning rate and speed within the epochs."""

from __future__ import annotations

import json
import time
from pathlib import Path

from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.json_text import to_json

STEPS = "steps.jsonl"
MOST_LINES = 1000  # of a run


class StepLog:
    """Writes a line each some steps, at most about a thousand in a run.

    Args:
        folder: of the run.
        total: optimiser steps of the run.
        done: steps that a resumed run has behind it; later lines are removed.
    """

    def __init__(self, folder: Path, total: int, done: int):
        self.path, self.every = folder / STEPS, max(1, total // MOST_LINES)
        self._loss = self._weight = 0.0
        self._since = (time.perf_counter(), done)
        with writing(self.path), replaced_file(self.path) as draft:
            draft.write_text("".join(self._lines_before(done)), encoding="utf-8")

    def _lines_before(self, done: int) -> list[str]:
        if not done or not self.path.is_file():
            return []
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= done:
                    kept.append(line + "\n")
            except (ValueError, LookupError, TypeError):
                break  # cut off by a kill
        return kept

    def add(self, step: int, loss: float, weight: float, rate: float) -> None:
        """Count a step, from 1, whose loss is summed over `weight`; write a line where one is due."""
        self._loss, self._weight = self._loss + loss, self._weight + weight
        if step % self.every:
            return
        now, (then, before) = time.perf_counter(), self._since
        speed = (step - before) / max(now - then, 1e-9)
        line = {"step": step, "loss": self._loss / self._weight, "lr": rate, "steps_per_s": round(speed, 3)}
        with writing(self.path), self.path.open("a", encoding="utf-8") as log:
            log.write(to_json(line) + "\n")
        self._loss = self._weight = 0.0
        self._since = (now, step)
