"""`clipcap compare`: two evaluations of the same images, tested by paired bootstrap."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipcap.bootstrap import Comparison
from clipcap.caption_files import read_predictions, read_references
from clipcap.errors import ClipcapError
from clipcap.evaluation import (
    CLIP_SCORE,
    METRICS,
    PREDICTIONS,
    REF_CLIP_SCORE,
    REFERENCES,
    REPORT,
    Captioned,
    pictured,
    run_of,
    summary,
)
from clipcap.evaluation_config import CompareConfig
from clipcap.metrics import Scores, score
from clipcap.report import Pictured, write_report

SURE = 0.05  # two-sided p-value
CRITERION = "CIDEr-D"


@dataclass(frozen=True)
class Evaluation:
    """What a folder of `clipcap evaluate` holds."""

    folder: Path
    captions: dict[str, str]
    references: dict[str, list[str]]
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        """As the folder is called."""
        return self.folder.resolve().name


def compare(a: str, b: str, config: CompareConfig) -> str:
    """Which of two evaluations is better, and how sure that is.

    Args:
        a, b: folders that `clipcap evaluate` wrote, of the same images and references.
    Returns:
        lines for the terminal.
    Raises:
        ClipcapError: no such evaluations, or of other images or references.
    """
    first, second = read_evaluation(a), read_evaluation(b)
    if first.references != second.references:
        same = len(first.references.keys() & second.references.keys())
        raise ClipcapError(
            f"{a} has {len(first.references)} images, {b} has {len(second.references)}, {same} of them the same: "
            f"evaluate both on the same images and human captions"
        )
    scores = [_scores(evaluation, first, config.java) for evaluation in (first, second)]
    lines = list(dict.fromkeys(note for one in scores for note in one.notes))
    lines.append(f"{'':14}{first.name[:20]:>21}{second.name[:20]:>21}  difference and its 95 % interval")
    found = {name: scores[0].compare(scores[1], name) for name in scores[0].corpus if name in scores[1].corpus}
    for name, outcome in found.items():
        values = "".join(f"{one.corpus[name]:21.4f}" for one in scores)
        lines.append(
            f"{name:14}{values}  {outcome.difference:+.4f} [{outcome.low:+.4f}, {outcome.high:+.4f}]  "
            f"p {_p(outcome.p_value)}"
        )
    lines.append(verdict(first.name, second.name, found[CRITERION], scores[0].images))
    if config.out:
        lines.append(f"report: {_report(Path(config.out), first, second, scores)}")
    return "\n".join(lines)


def verdict(first: str, second: str, outcome: Comparison, images: int) -> str:
    """Who is better by CIDEr-D, in words."""
    better, worse = (first, second) if outcome.difference > 0 else (second, first)
    if outcome.p_value < SURE:
        return f"{better} is better than {worse} by {CRITERION}, p {_p(outcome.p_value)} on {images} images"
    return f"no difference by {CRITERION} that {images} images would show (p {_p(outcome.p_value)})"


def _p(value: float) -> str:
    return "< 0.002" if value <= 0.002 else f"= {value:.3f}"


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read a folder of `clipcap evaluate`.

    Raises:
        ClipcapError: it is none, or damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / PREDICTIONS).is_file():
        raise ClipcapError(f"{folder}: is no evaluation ({PREDICTIONS} is not there): run `clipcap evaluate` first")
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        for scores in metrics["per_image"].values():
            if any(type(value) not in (int, float) for value in scores.values()):
                raise TypeError("a score that is no number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClipcapError(f"{folder / METRICS}: missing or damaged: run `clipcap evaluate` again") from error
    references = read_references(folder / REFERENCES)
    captions = read_predictions(folder / PREDICTIONS)
    if captions.keys() != references.keys():
        raise ClipcapError(f"{folder}: its captions and references are of different images: evaluate again")
    return Evaluation(folder, captions, references, metrics)


def _scores(evaluation: Evaluation, order: Evaluation, java: bool) -> Scores:
    """Scored again, images in the order of the first evaluation; CLIPScore as it was stored."""
    captions = [evaluation.captions[image] for image in order.references]
    scores = score(captions, list(order.references.values()), with_java=java)
    per_image: Mapping[str, Mapping[str, float]] = evaluation.metrics["per_image"]
    for name in (CLIP_SCORE, REF_CLIP_SCORE):
        if all(name in per_image.get(image, ()) for image in order.references):
            scores.add(name, np.array([per_image[image][name] for image in order.references]))
    return scores


def _report(path: Path, first: Evaluation, second: Evaluation, scores: list[Scores]) -> Path:
    """Both captions of each picture side by side."""
    names = (first.name, second.name) if first.name != second.name else (f"{first.name} (1)", f"{second.name} (2)")
    runs, galleries = [], []
    for name, evaluation, one in zip(names, (first, second), scores, strict=True):
        captions = {image: evaluation.captions[image] for image in first.references}
        found = Captioned(
            captions, first.references, evaluation.metrics.get("run", {}), evaluation.metrics.get("images_at", {}),
            evaluation.metrics.get("epochs", []),
        )  # fmt: skip
        runs.append(run_of(summary(one, found), found, name))
        galleries.append(pictured(one, found, name))
    pictures = [
        Pictured(a.image_id, a.image or b.image, a.references, {**a.captions, **b.captions}, a.scores)
        for a, b in zip(*galleries, strict=True)
    ]
    path = path if path.suffix == ".html" else path / REPORT
    return write_report(path, f"{names[0]} and {names[1]}", runs, pictures)
