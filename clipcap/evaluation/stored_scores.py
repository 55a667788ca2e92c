"""What the scores of an evaluation are formed of, stored beside them so that a comparison scores nothing again."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipcap.evaluation.metrics.score import Scores
from clipcap.runtime.files import replaced_file, writing

SCORES = "scores.npz"
TOKENS = "tokens: "  # begins the note on the tokenizer
_COUNTS, _BY_IMAGE, _FINGERPRINT = "counts/", "by_image/", "fingerprint"


def save_scores(
    folder: Path, scores: Scores, captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> None:
    """Write `scores.npz`: arrays [images, …] in the order of the captions.

    Raises:
        ClipcapError: it cannot be written.
    """
    arrays = {_COUNTS + name: rows for name, rows in scores.counts.items()}
    arrays |= {_BY_IMAGE + name: rows for name, rows in scores.per_image.items()}
    arrays[_FINGERPRINT] = np.array(fingerprint(captions, references))
    with writing(folder), replaced_file(folder / SCORES) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_scores(
    folder: Path,
    metrics: Mapping[str, Any],
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    order: Sequence[str],
) -> Scores | None:
    """The scores of an evaluation, its images in this order; None where they have to be computed again.

    Args:
        folder: of the evaluation.
        metrics: what its `metrics.json` holds.
        captions: of its `predictions.json`.
        references: of its `references.json`.
        order: ids of the same images.
    """
    try:
        with np.load(folder / SCORES, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays.pop(_FINGERPRINT)) != fingerprint(captions, references):
            return None  # somebody has changed the captions since
        if any(len(rows) != len(captions) or rows.dtype != np.float64 for rows in arrays.values()):
            return None
        values = {kind: {n: float(v["value"]) for n, v in metrics[kind].items()} for kind in ("corpus", "language")}
        diversity = {name: float(value) for name, value in metrics["diversity"].items()}
        notes = [str(note) for note in metrics["notes"]]
        human = int(metrics["references"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None
    places = {image: place for place, image in enumerate(captions)}
    rows = [places[image] for image in order]
    counts, by_image = (
        {name.removeprefix(kind): found[rows] for name, found in arrays.items() if name.startswith(kind)}
        for kind in (_COUNTS, _BY_IMAGE)
    )
    scores = Scores(
        values["corpus"], by_image, counts, diversity, [], len(order), human, notes, language=values["language"]
    )
    return scores if all(scores.has_rows(name) for name in (*scores.corpus, *scores.language)) else None


def fingerprint(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> str:
    """Of the captions and the references, in order."""
    content = json.dumps([list(captions.items()), [[image, list(texts)] for image, texts in references.items()]])
    return hashlib.sha256(content.encode("ascii")).hexdigest()
