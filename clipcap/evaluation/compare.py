"""`clipcap compare`: evaluations of the same images, tested by paired bootstrap."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.evaluation.caption_files import read_predictions, read_references
from clipcap.evaluation.config import CompareConfig
from clipcap.evaluation.evaluate import (
    METRICS,
    PREDICTIONS,
    REFERENCES,
    REPORT,
    Captioned,
    report_pictures,
    report_run,
    summary,
)
from clipcap.evaluation.judges import CLIP_SCORE, REF_CLIP_SCORE
from clipcap.evaluation.metrics.bootstrap import Comparison
from clipcap.evaluation.metrics.score import Scores, cider_scorer, score
from clipcap.evaluation.report.content import Pictured
from clipcap.evaluation.report.page import write_report
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import printable

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
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def characters(self) -> bool:
        """Whether every character was a token."""
        return bool(self.metrics.get("characters"))


@writes_to("config.out")
def compare(folders: Sequence[str], config: CompareConfig) -> str:
    """Which of several evaluations is better, and how sure that is: the first against each of the others.

    Args:
        folders: two or more that `clipcap evaluate` wrote, of the same images and references.
    Returns:
        lines for the terminal.
    Raises:
        ClipcapError: a folder is not an evaluation, or the images or references differ.
    """
    if len(folders) < 2:
        raise ClipcapError("nothing to compare with: give two folders or more")
    cider_scorer()
    evaluations = [read_evaluation(folder) for folder in folders]
    first, *others = evaluations
    for other in others:
        _check_alike(first, other)
    scores = [_scores(evaluation, first, config.java) for evaluation in evaluations]
    lines = list(dict.fromkeys(note for one in scores for note in one.notes))
    names = _apart([evaluation.name for evaluation in evaluations])
    tables = [_against(names[0], name, scores[0], found) for name, found in zip(names[1:], scores[1:])]
    lines += [line for table in tables for line in table]
    if config.out:
        found = dict(zip(names, evaluations))
        lines.append(f"report: {_report(Path(config.out), found, scores, [table[-1] for table in tables])}")
    return "\n".join(map(printable, lines))


def _check_alike(first: Evaluation, other: Evaluation) -> None:
    """Refuse to compare evaluations on different images, or with different tokens."""
    if first.references != other.references:
        same = len(first.references.keys() & other.references.keys())
        raise ClipcapError(
            f"{first.folder} has {len(first.references)} images, {other.folder} has {len(other.references)}, {same} "
            f"of them the same: evaluate both on the same images and human captions"
        )
    if first.characters != other.characters:
        by = ("characters", "words") if first.characters else ("words", "characters")
        raise ClipcapError(
            f"{first.folder} was scored by {by[0]}, {other.folder} by {by[1]}: evaluate both with --characters, or "
            f"neither"
        )


def _against(name: str, other_name: str, scores: Scores, other: Scores) -> list[str]:
    """A table of two runs with the differences of their scores, and the verdict."""
    lines = [f"{'':14}{_column(name)}{_column(other_name)}  difference and its 95 % interval"]
    found = {metric: scores.compare(other, metric) for metric in scores.corpus if metric in other.corpus}
    for metric, outcome in found.items():
        lines.append(
            f"{metric:14}{scores.corpus[metric]:21.4f}{other.corpus[metric]:21.4f}  {outcome.difference:+.4f} "
            f"[{outcome.low:+.4f}, {outcome.high:+.4f}]  p {_p(outcome.p_value)}"
        )
    return [*lines, verdict(name, other_name, found[CRITERION], scores.images)]


def _column(name: str) -> str:
    return f"{name if len(name) <= 20 else name[:19] + '…':>21}"


def verdict(first: str, second: str, outcome: Comparison, images: int) -> str:
    """A sentence that states which run is better by CIDEr-D."""
    better, worse = (first, second) if outcome.difference > 0 else (second, first)
    if outcome.p_value < SURE:
        return f"{better} is better than {worse} by {CRITERION}, p {_p(outcome.p_value)} on {images} images"
    return f"no difference by {CRITERION} that is significant on {images} images (p {_p(outcome.p_value)})"


def _p(value: float) -> str:
    return "< 0.002" if value <= 0.002 else f"= {value:.3f}"


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read a folder of `clipcap evaluate`.

    Raises:
        ClipcapError: not an evaluation, or damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / PREDICTIONS).is_file():
        raise ClipcapError(f"{folder}: is not an evaluation ({PREDICTIONS} is missing): run `clipcap evaluate` first")
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        for scores in metrics["per_image"].values():
            if any(type(value) not in (int, float) for value in scores.values()):
                raise TypeError("a score that is not a number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClipcapError(f"{folder / METRICS}: missing or damaged: run `clipcap evaluate` again") from error
    references = read_references(folder / REFERENCES)
    captions = read_predictions(folder / PREDICTIONS)
    if captions.keys() != references.keys():
        raise ClipcapError(f"{folder}: its captions and references cover different images: evaluate again")
    return Evaluation(folder, captions, references, metrics)


def _scores(evaluation: Evaluation, order: Evaluation, java: bool) -> Scores:
    """Score again, in the image order of the first evaluation; CLIPScore is read from the file."""
    captions = [evaluation.captions[image] for image in order.references]
    scores = score(captions, list(order.references.values()), characters=order.characters, with_java=java)
    per_image: Mapping[str, Mapping[str, float]] = evaluation.metrics["per_image"]
    for name in (CLIP_SCORE, REF_CLIP_SCORE):
        if all(name in per_image.get(image, ()) for image in order.references):
            scores.add(name, np.array([per_image[image][name] for image in order.references]))
    return scores


def _report(
    path: Path, evaluations: Mapping[str, Evaluation], scores: Sequence[Scores], verdicts: Sequence[str]
) -> Path:
    """Write a report that compares the runs' captions; `verdicts` belong to the second run and later ones."""
    names = list(evaluations)
    references = evaluations[names[0]].references
    notes = [[], *([verdict] for verdict in verdicts)]  # of each run
    runs, galleries = [], []
    for (name, evaluation), one, verdict_notes in zip(evaluations.items(), scores, notes, strict=True):
        captions = {image: evaluation.captions[image] for image in references}
        found = Captioned(
            captions, references, evaluation.metrics.get("run", {}), evaluation.metrics.get("images_at", {}),
            evaluation.metrics.get("epochs", []),
        )  # fmt: skip
        run = report_run(summary(one, found), found, name)
        runs.append(replace(run, notes=[*run.notes, *verdict_notes]))
        galleries.append(report_pictures(one, found, name))
    pictures = []
    for several in zip(*galleries, strict=True):
        image = next((one.image for one in several if one.image), None)
        captions = {name: caption for one in several for name, caption in one.captions.items()}
        pictures.append(Pictured(several[0].image_id, image, several[0].references, captions, several[0].scores))
    path = path if path.suffix == ".html" else path / REPORT
    return write_report(path, f"{', '.join(names[:-1])} and {names[-1]}", runs, pictures)


def _apart(names: Sequence[str]) -> list[str]:
    """Names; if some are equal, each is followed by its number."""
    alike = len(set(names)) < len(names)
    return [f"{name} ({place})" if alike else name for place, name in enumerate(names, 1)]
