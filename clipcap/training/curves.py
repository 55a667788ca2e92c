"""The course of a training as a page with the report's charts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from clipcap.evaluation.report.content import Run
from clipcap.evaluation.report.page import write_curves_page
from clipcap.training.run_folder import LOG

CURVES = "curves.html"


def write_curves(folder: Path, chance: Mapping[str, float] | None = None) -> Path:
    """Draw the numbers of a run's `metrics.jsonl` over its epochs: losses in one chart, any other in its own.

    Args:
        folder: of the run; the page is written into it.
        chance: by name, what a model that knows nothing would reach.
    Raises:
        ClipcapError: the file cannot be written.
    """
    epochs = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    facts = {"run": str(folder), "epochs": str(len(epochs))}
    facts |= {f"{name} by chance": f"{value:.4g}" for name, value in (chance or {}).items()}
    return write_curves_page(folder / CURVES, "Training", Run(folder.name, {}, facts, epochs=epochs))
