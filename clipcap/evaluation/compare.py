"""`clipcap compare`: evaluations of the same images, tested by paired bootstrap."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from clipcap.evaluation.judges import CLIP_SCORE, PAC_SCORE, REF_CLIP_SCORE, REF_PAC_SCORE, describe_chance
from clipcap.evaluation.metrics.bootstrap import Comparison
from clipcap.evaluation.metrics.score import RANK, Scores, cider_scorer, score
from clipcap.evaluation.report.content import Difference, Pictured, Versus
from clipcap.evaluation.report.page import write_report
from clipcap.evaluation.stored_scores import TOKENS, load_scores
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import counted, printable

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
    scores = _all_scores(evaluations, config.java)
    lines = list(dict.fromkeys(note for one in scores for note in one.notes))
    names = _apart([evaluation.name for evaluation in evaluations])
    found = [_against(names[0], name, scores[0], other) for name, other in zip(names[1:], scores[1:])]
    lines += [line for versus, other in zip(found, scores[1:]) for line in _table(versus, scores[0], other)]
    if config.out:
        by_name = dict(zip(names, evaluations))
        lines.append(f"report: {_report(Path(config.out), by_name, scores, found)}")
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


def _against(name: str, other_name: str, scores: Scores, other: Scores) -> Versus:
    """The differences of the scores that both runs have, and the verdict."""
    both = [
        *(metric for metric in scores.corpus if metric in other.corpus),
        *(metric for metric in scores.language if metric in other.language),
    ]
    found = {metric: scores.compare(other, metric) for metric in both}
    differences = {
        metric: Difference(one.difference, one.low, one.high, one.p_value) for metric, one in found.items()
    }
    return Versus(name, other_name, verdict(name, other_name, found[CRITERION], scores.images), differences)


def _table(versus: Versus, scores: Scores, other: Scores) -> list[str]:
    """Two runs with the differences of their scores, at most 80 columns wide, and the verdict."""
    values, others = scores.corpus | scores.language, other.corpus | other.language
    lines = [
        f"A: {_short(versus.first)}, B: {_short(versus.second)}",
        f"{'':17}{'A':>9}{'B':>9}  difference and its 95 % interval",
    ]
    for metric, one in versus.differences.items():
        lines.append(
            f"{metric:17}{values[metric]:9.4f}{others[metric]:9.4f}  {one.value:+.4f} "
            f"[{one.low:+.4f}, {one.high:+.4f}]  p {_p(one.p_value)}"
        )
    return [*lines, versus.verdict]


def _short(name: str) -> str:
    return name if len(name) <= 35 else name[:34] + "…"


def verdict(first: str, second: str, outcome: Comparison, images: int) -> str:
    """A sentence that states which run is better by CIDEr-D."""
    better, worse = (first, second) if outcome.difference > 0 else (second, first)
    if outcome.p_value < SURE:
        return f"{better} is better than {worse} by {CRITERION}, p {_p(outcome.p_value)} on {images} images"
    return f"No difference by {CRITERION} that is significant on {images} images (p {_p(outcome.p_value)})"


def _p(value: float) -> str:
    return "< 0.002" if value <= 0.002 else f"= {value:.3f}"


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read a folder of `clipcap evaluate`.

    Raises:
        ClipcapError: not an evaluation, or damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / PREDICTIONS).is_file():
        within = folder / "evaluation"  # of a run of `clipcap fit`
        instead = f"pass {within}" if (within / PREDICTIONS).is_file() else "run `clipcap evaluate` first"
        raise ClipcapError(f"{folder}: is not an evaluation ({PREDICTIONS} is missing): {instead}")
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


def _all_scores(evaluations: Sequence[Evaluation], java: bool) -> list[Scores]:
    """The scores of each, in the image order of the first: as stored, or anew where a folder is older or changed."""
    order = list(evaluations[0].references)
    stored = [load_scores(one.folder, one.metrics, one.captions, one.references, order) for one in evaluations]
    tokenizers = {note for one in stored if one for note in one.notes if note.startswith(TOKENS)}
    scores = [one for one in stored if one]
    if len(scores) == len(stored) and len(tokenizers) == 1:
        return scores
    return [_scores(evaluation, evaluations[0], java) for evaluation in evaluations]


def _scores(evaluation: Evaluation, order: Evaluation, java: bool) -> Scores:
    """Score again, in the image order of the first evaluation; what encoders found is read from the file."""
    captions = [evaluation.captions[image] for image in order.references]
    logger.info(f"scoring {counted(len(captions), 'caption')} of {evaluation.folder}")
    scores = score(captions, list(order.references.values()), characters=order.characters, with_java=java)
    per_image: Mapping[str, Mapping[str, float]] = evaluation.metrics["per_image"]
    stored = {
        name: np.array([per_image[image][name] for image in order.references], dtype=np.float64)
        for name in (CLIP_SCORE, REF_CLIP_SCORE, PAC_SCORE, REF_PAC_SCORE, RANK)
        if all(name in per_image.get(image, ()) for image in order.references)
    }
    ranks = stored.pop(RANK, None)
    for name, rows in stored.items():
        scores.add(name, rows)
    if ranks is not None:
        scores.add_ranks(ranks)
        scores.notes.append(describe_chance(len(captions)))
    return scores


def _report(
    path: Path, evaluations: Mapping[str, Evaluation], scores: Sequence[Scores], versus: Sequence[Versus]
) -> Path:
    """Write a report that compares the runs' captions."""
    names = list(evaluations)
    references = evaluations[names[0]].references
    runs, galleries = [], []
    for (name, evaluation), one in zip(evaluations.items(), scores, strict=True):
        captions = {image: evaluation.captions[image] for image in references}
        found = Captioned(
            captions, references, evaluation.metrics.get("run", {}), evaluation.metrics.get("images_at", {}),
            evaluation.metrics.get("epochs", []),
        )  # fmt: skip
        runs.append(report_run(summary(one, found), found, name))
        galleries.append(report_pictures(one, found, name))
    pictures = []
    for several in zip(*galleries, strict=True):
        image = next((one.image for one in several if one.image), None)
        captions = {name: caption for one in several for name, caption in one.captions.items()}
        others = {name: one.scores for name, one in zip(names[1:], several[1:], strict=True)}
        first = several[0]
        pictures.append(Pictured(first.image_id, image, first.references, captions, first.scores, others))
    path = path if path.suffix == ".html" else path / REPORT
    return write_report(path, f"{', '.join(names[:-1])} and {names[-1]}", runs, pictures, versus=versus)


def _apart(names: Sequence[str]) -> list[str]:
    """Names; if some are equal, each is followed by its number."""
    alike = len(set(names)) < len(names)
    return [f"{name} ({place})" if alike else name for place, name in enumerate(names, 1)]
