"""`clipcap classify`: photos → labels, with accuracy if true labels are known, and flags."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipcap.classification.classifiers import OPPOSITE, TEMPLATE, Classifier, LinearProbe, PromptPairs, ZeroShot
from clipcap.classification.config import ClassifyConfig
from clipcap.classification.embeddings import embed_photos
from clipcap.classification.labelled import Labelled, checked_labels, read_labelled
from clipcap.classification.scores import Scores, score
from clipcap.classification.sheet import MOST, sheet
from clipcap.errors import ClipcapError
from clipcap.images.read import find_images
from clipcap.images.write import write_picture
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.load import load_encoder
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import as_cell, in_short, printable
from clipcap.sources.textfiles import read_lines

FLAGGED, UNREAD = 3, 1  # exit status
THRESHOLD = 0.5
_PLACES = ("out", "report", "list", "move")  # options that name what is written
SHOWN = 50  # photos in the terminal


def classify(
    images: Sequence[str | Path | Image.Image] | str | Path | Image.Image,
    labels: Sequence[str],
    *,
    encoder: str | Encoder = "ViT-B/32",
    templates: Sequence[str] = (TEMPLATE,),
    top: int = 5,
    device: str = "auto",
) -> list[dict[str, float]]:
    """Give each image its likeliest labels (zero-shot, CLIP, section 3.1).

    Args:
        images: paths, globs, folders or pictures.
        labels: to choose from.
        encoder: a name, or a loaded encoder.
        templates: prompts with {} in the label's place.
        top: labels to give.
        device: where to compute.
    Returns:
        for each image {label: probability}, best first.
    Raises:
        ClipcapError: no images or labels, an unreadable image, or an unknown encoder.
    """
    images = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    photos: list[str | Path | Image.Image] = []
    for image in images:
        photos += [image] if isinstance(image, Image.Image) else find_images([str(image)])
    loaded = load_encoder(encoder, device) if isinstance(encoder, str) else encoder
    classifier = ZeroShot.of(loaded, checked_labels(labels), templates)
    embeddings, _, bad = embed_photos(loaded, photos)
    if bad:
        raise ClipcapError(bad[0])
    return [dict(one) for one in _tops(classifier.probabilities(embeddings), classifier.labels, top)]


@dataclass(frozen=True)
class Result:
    """The results of a run.

    Attributes:
        photos: the N readable ones.
        labels: C.
        probabilities: [N, C].
        scores: if true labels are known.
        flagged: photos in which a label of --flag reaches its threshold.
        unread: why further photos could not be read.
    """

    photos: list[Labelled]
    labels: list[str]
    probabilities: Tensor
    scores: Scores | None
    flagged: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 3 if a photo is flagged, 1 if a photo cannot be read."""
        return FLAGGED if self.flagged else UNREAD if self.unread else 0


@writes_to(lambda called: next(filter(None, (getattr(called["config"], name) for name in _PLACES)), None))
def run_classify(
    photos: Sequence[str], templates: Sequence[str], thresholds: Sequence[str], config: ClassifyConfig
) -> Result:
    """Classify photos, print a table, and write the requested files.

    Args:
        photos: files, globs and folders; with `config.data` its photos are added.
        templates: of the prompts; without any, one of CLIP's.
        thresholds: LABEL=0.8, for --flag.
        config: options.
    Raises:
        ClipcapError: no photos or labels, conflicting options, or a file that cannot be written.
    """
    asked = [Labelled(path) for path in (find_images(photos) if photos else [])]
    if config.data:
        asked += read_labelled(config.data, "--data", config.image_column, config.label_column)
    if not asked:
        raise ClipcapError("nothing to classify: name photos with --img, or photos with labels with --data")
    limits = read_thresholds(thresholds)
    flags = [name.strip() for name in (config.flag or "").split(",") if name.strip()]
    encoder = load_encoder(config.clip_model_type, config.device, tokenizer=config.tokenizer)
    classifier = _classifier(encoder, asked, templates, [*limits, *flags], config)
    for name in [*limits, *flags]:
        if name not in classifier.labels:
            raise ClipcapError(f"{name!r} is not among the labels: {', '.join(classifier.labels[:8])}")
    embeddings, good, bad = embed_photos(encoder, [one.path for one in asked], config.batch_size, config.frame)
    for why in bad:
        logger.warning(printable(why))
    if not good:
        raise ClipcapError("none of the photos could be read")
    known = [asked[number] for number in good]
    probabilities = classifier.probabilities(embeddings)
    result = Result(
        known, classifier.labels, probabilities, _scores(known, probabilities, classifier),
        _flagged(known, probabilities, classifier.labels, flags, limits), bad,
    )  # fmt: skip
    _show(result, config)
    _write(result, config)
    return result


def read_labels(labels: str | None) -> list[str]:
    """Labels of `a,b,c` or of a file, one a line."""
    if labels and Path(labels).expanduser().is_file():
        return checked_labels(list(read_lines(Path(labels).expanduser())))
    return checked_labels((labels or "").split(","))


def read_thresholds(thresholds: Sequence[str]) -> dict[str, float]:
    """LABEL=0.8 as numbers.

    Raises:
        ClipcapError: not of this form, or not between 0 and 1.
    """
    found = {}
    for text in thresholds:
        label, equals, number = text.rpartition("=")
        try:
            found[label.strip()] = value = float(number)
        except ValueError:
            value = -1.0
        if not equals or not 0 <= value <= 1:
            raise ClipcapError(f"--threshold {text}: write LABEL=0.8, with a number between 0 and 1")
    return found


def _classifier(
    encoder: Encoder,
    asked: Sequence[Labelled],
    templates: Sequence[str],
    judged: Sequence[str],
    config: ClassifyConfig,
) -> Classifier:
    """A probe with --fit, pairs of prompts where labels have opposites or are flagged, else zero-shot."""
    if config.fit:
        known = read_labelled(config.fit, "--fit", config.image_column, config.label_column)
        embeddings, good, bad = embed_photos(encoder, [one.path for one in known], config.batch_size, config.frame)
        if bad:
            logger.warning(f"--fit: {len(bad)} photos cannot be read and are left out, as {printable(bad[0])}")
        return LinearProbe.fit(embeddings, [str(known[number].label) for number in good])
    names = sorted({one.label for one in asked if one.label is not None})
    labels = read_labels(config.labels) if config.labels or not names else names
    templates = list(templates) or [TEMPLATE]
    if judged or any("|" in label for label in labels):
        pairs = [tuple(part.strip() for part in label.partition("|")[::2]) for label in labels]
        return PromptPairs.of(encoder, [(a, b or OPPOSITE.replace("{}", a)) for a, b in pairs], templates)
    return ZeroShot.of(encoder, labels, templates)


def _scores(known: Sequence[Labelled], probabilities: Tensor, classifier: Classifier) -> Scores | None:
    rows = [number for number, one in enumerate(known) if one.label is not None]
    if not rows or not classifier.exclusive:
        return None
    return score(probabilities[rows], classifier.labels, [str(known[row].label) for row in rows])


def _flagged(
    known: Sequence[Labelled],
    probabilities: Tensor,
    labels: list[str],
    flags: Sequence[str],
    limits: dict[str, float],
) -> list[Path]:
    if not flags:
        return []
    columns = [labels.index(name) for name in flags]
    limit = torch.tensor([limits.get(name, THRESHOLD) for name in flags])
    over = (probabilities[:, columns] >= limit).any(1).tolist()
    return [one.path for one, flag in zip(known, over, strict=True) if flag]


def _tops(probabilities: Tensor, labels: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """The first labels of each row with their probabilities."""
    values, order = probabilities.sort(dim=1, descending=True, stable=True)
    return [
        [(labels[int(i)], value) for i, value in zip(row[:top], numbers[:top], strict=True)]
        for row, numbers in zip(order.tolist(), values.tolist(), strict=True)
    ]


def _show(result: Result, config: ClassifyConfig) -> None:
    flagged = set(result.flagged)
    tops = _tops(result.probabilities, result.labels, config.top)
    for one, top in [*zip(result.photos, tops, strict=True)][:SHOWN]:
        words = ", ".join(f"{in_short(label)} {100 * value:.1f} %" for label, value in top)
        mark = "  FLAGGED" if one.path in flagged else ""
        print(f"{printable(str(one.path))}  {words}{mark}")
    if len(tops) > SHOWN:
        print(f"… and {len(tops) - SHOWN:,} more photos")
    if result.scores:
        print("\n".join(result.scores.lines()))
    if config.flag:
        print(f"{len(result.flagged)} of {len(result.photos)} photos are flagged")


def _write(result: Result, config: ClassifyConfig) -> None:
    tops = _tops(result.probabilities, result.labels, config.top)
    if config.out:
        path = Path(config.out).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path), replaced_file(path) as draft:
            _write_photos(result, tops, path.suffix.lower(), draft)
        short = path.suffix.lower() == ".png" and len(tops) > MOST
        logger.info(
            f"wrote {path}" + f" of the first {MOST} of {len(tops):,} photos; .jsonl and .csv hold all" * short
        )
    if config.report and result.scores:
        with writing(Path(config.report)), replaced_file(Path(config.report)) as draft:
            draft.write_text(
                json.dumps(result.scores.content(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    if config.list:
        with writing(Path(config.list)), replaced_file(Path(config.list)) as draft:
            draft.write_text("".join(f"{path}\n" for path in result.flagged), encoding="utf-8")
    if config.move:
        _move(result.flagged, Path(config.move).expanduser())


def _write_photos(result: Result, tops: list[list[tuple[str, float]]], kind: str, path: Path) -> None:
    if kind == ".png":
        photos = [one.path for one in result.photos]
        write_picture(sheet(photos, tops, [one.label for one in result.photos]), path, "PNG")
        return
    flagged = set(result.flagged)
    rows: list[dict[str, Any]] = [
        {"image": str(one.path), "label": one.label, "flagged": one.path in flagged, "labels": dict(top)}
        for one, top in zip(result.photos, tops, strict=True)
    ]
    with open(path, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        if kind == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "true label", "flagged", "label", "probability"])
        for row in rows:
            label, probability = next(iter(row["labels"].items()))
            cells = [as_cell(str(row["image"])), as_cell(row["label"] or ""), int(row["flagged"]), as_cell(label)]
            writer.writerow([*cells, f"{probability:.6f}"])


def _move(photos: Sequence[Path], folder: Path) -> None:
    """Move photos; if a name is taken there, a number is appended."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for photo in photos:
            place, number = folder / photo.name, 2
            while place.exists():
                place, number = folder / f"{photo.stem}_{number}{photo.suffix}", number + 1
            shutil.move(photo, place)
