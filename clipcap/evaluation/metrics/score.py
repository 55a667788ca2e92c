"""Caption metrics of the COCO evaluation, by corpus and by image."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics import java
from clipcap.evaluation.metrics.bootstrap import (
    Comparison,
    bootstrap_interval,
    median,
    paired_bootstrap,
    whole_score,
)
from clipcap.evaluation.metrics.language import bad_ending_rows, distinct_rows, repetition_rows
from clipcap.evaluation.metrics.objects import Names, chair_counts, chair_of_counts
from clipcap.evaluation.metrics.rouge import rouge_l
from clipcap.evaluation.metrics.tokenize import CaptionTokens, tokenize
from clipcap.evaluation.metrics.variety import mbleu_counts, mbleu_of_counts, self_cider
from clipcap.runtime.progress import PartBar
from clipcap.runtime.scripts import most_lack_blanks
from clipcap.scoring.words import words_of

_BLEU_ORDER = 4
BAD_ENDINGS, REPEATED, MBLEU, SELF_CIDER = "bad endings", "repeated 2-grams", "mBLEU-4", "self-CIDEr"
CHAIR_OBJECTS, CHAIR_CAPTIONS = "CHAIRi", "CHAIRs"
RANK, MEDIAN_RANK = "rank", "median rank"
RECALLS = {"R@1": 1, "R@5": 5, "R@10": 10}  # the last rank that counts


@dataclass
class Scores:
    """What `score` finds.

    Attributes:
        corpus: BLEU-1 to BLEU-4, METEOR, ROUGE-L, CIDEr-D (0 to 10; what the COCO server prints as CIDEr), SPICE.
        per_image: the same of each image, [images]. ROUGE-L, CIDEr-D and SPICE of a corpus are the means of these.
        language: of the candidates as texts, such as distinct-1 and bad endings.
        counts: what scores that are no means of `per_image` are formed of: what BLEU and METEOR sum over images
            before they divide, [images, K]; rows whose mean is the score, [images].
        diversity: of the candidates alone: `distinct` (share of different captions), `vocabulary` (number of
            different tokens), `length` (mean tokens), and `copied` (share found among the training captions).
        tokens: of each candidate.
        images: their number.
        references: number of human captions of them all.
        notes: the tokenizer that was used, and each metric that was skipped, with the reason.
        characters: whether tokens are single characters.
    """

    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    diversity: dict[str, float]
    tokens: list[CaptionTokens]
    images: int
    references: int
    notes: list[str] = field(default_factory=list)
    language: dict[str, float] = field(default_factory=dict)
    characters: bool = False

    def add(self, name: str, per_image: np.ndarray) -> None:
        """Add a metric that is the mean of its scores [images], such as CLIPScore."""
        self.per_image[name] = np.asarray(per_image, dtype=np.float64)
        self.corpus[name] = float(self.per_image[name].mean())

    def add_language(self, name: str, rows: np.ndarray) -> None:
        """Add what captions are like as language, from its rows [images] or [images, K] of `counts`."""
        self.counts[name] = np.asarray(rows, dtype=np.float64)
        self.language[name] = whole_score(*self._rows(name))

    def add_ranks(self, ranks: np.ndarray) -> None:
        """Add self-retrieval: recall at 1, 5 and 10 and the median, from the rank [images] of each own image."""
        self.per_image[RANK] = ranks
        self.counts |= {name: (ranks <= last).astype(np.float64) for name, last in RECALLS.items()}
        self.corpus |= {name: float(self.counts[name].mean()) for name in RECALLS}
        self.corpus[MEDIAN_RANK] = float(np.median(ranks))

    def add_objects(self, counts: np.ndarray) -> None:
        """Add CHAIR, from `chair_counts` [images, 3]."""
        self.counts[CHAIR_OBJECTS] = counts
        self.per_image[CHAIR_OBJECTS] = chair_of_counts(counts)
        self.corpus[CHAIR_OBJECTS] = float(chair_of_counts(counts.sum(axis=0)))
        self.add(CHAIR_CAPTIONS, counts[:, 2])

    def interval(self, name: str, n: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of a corpus score.

        Images are drawn again, never their scores' background: CIDEr-D keeps the document frequencies of the whole
        reference set, so it is a mean; BLEU and METEOR are formed again from the counts of the images drawn.
        """
        return bootstrap_interval(*self._rows(name), n=n, seed=seed)

    def compare(self, other: Scores, name: str, n: int = 1000, seed: int = 0) -> Comparison:
        """This run against another on the same images in the same order, by paired bootstrap."""
        rows, of_sums = self._rows(name)
        return paired_bootstrap(rows, other._rows(name)[0], of_sums, n, seed)

    def has_rows(self, name: str) -> bool:
        """Whether what a score is formed of is here, so that it has an interval and can be compared."""
        try:
            return len(self._rows(name)[0]) == self.images
        except ClipcapError:
            return False

    def _rows(self, name: str) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray] | None]:
        if name.startswith("BLEU-") and "BLEU" in self.counts:
            return self.counts["BLEU"], partial(bleu_of_counts, order=int(name[-1]))
        if name == MEDIAN_RANK and RANK in self.per_image:
            return self.per_image[RANK], median
        if name in self.counts:
            return self.counts[name], _OF_SUMS.get(name)
        if name in self.per_image:
            return self.per_image[name], None
        raise ClipcapError(f"no {name} among the scores: choose from {', '.join(self.corpus | self.language)}")


def score(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    training: Sequence[str] | None = None,
    characters: bool | None = None,
    with_java: bool = True,
    several: Sequence[Sequence[str]] | None = None,
    objects: Names | None = None,
) -> Scores:
    """Score one caption of each image against its human captions.

    Args:
        candidates: one caption per image.
        references: the human captions of each image, one or more.
        training: captions that the captioner was trained on, for the share of copies.
        characters: see `tokenize`; leaves out METEOR and SPICE. None: where most references are in a script that
            puts no blanks between words.
        with_java: also run the metrics that need Java, if it is installed.
        several: all captions of each image, where there are several: how much they differ is scored too.
        objects: of `read_objects`; scores the objects that a caption names and no reference does.
    Raises:
        ClipcapError: pycocoevalcap is not installed, nothing to score, or an image without references.
    """
    least = min(map(len, several or [()]), default=0)  # captions that every image has
    more = [texts[:least] for texts in several or ()] if least > 1 else []
    groups = [candidates, *references, training or (), *more]
    if characters is None:
        characters = most_lack_blanks(text for texts in references for text in texts)
    tokens, notes = tokenize([text for texts in groups for text in texts], characters, with_java)
    rest = iter(tokens)
    found, *wanted = [[next(rest) for _ in texts] for texts in groups]
    known, more = wanted[len(references)], wanted[len(references) + 1 :]
    wanted = wanted[: len(references)]
    scores = score_tokens(found, wanted, characters, with_java)
    scores.notes[:0] = notes
    if training is not None:
        trained_on = {tuple(caption) for caption in known}
        scores.diversity["copied"] = sum(tuple(caption) in trained_on for caption in found) / len(found)
    if more:
        scores.add_language(MBLEU, mbleu_counts(more, _bleu_counts))
        scores.add_language(SELF_CIDER, self_cider(more, wanted))
        scores.notes.append(f"{MBLEU}, {SELF_CIDER}: of {least} captions of each image")
    if objects:
        scores.add_objects(chair_counts(found, wanted, objects))
    return scores


def score_tokens(
    candidates: Sequence[CaptionTokens],
    references: Sequence[Sequence[CaptionTokens]],
    characters: bool = False,
    with_java: bool = True,
) -> Scores:
    """Score tokenized captions (arguments and errors as for `score`)."""
    _check(candidates, references)
    found = [" ".join(caption) for caption in candidates]
    wanted = [[" ".join(caption) for caption in several] for several in references]
    diversity = {
        "distinct": len(set(found)) / len(found),
        "vocabulary": len({token for caption in candidates for token in caption}),
        "length": sum(map(len, candidates)) / len(found),
    }
    count = sum(map(len, references))
    scores = Scores({}, {}, {}, diversity, list(candidates), len(found), count, characters=characters)
    scores.notes.append(f"images: {scores.images}, references: {scores.references}")
    metrics: dict[str, Callable[[], None]] = {
        "BLEU": lambda: _add_bleu(scores, found, wanted),
        "ROUGE-L": lambda: scores.add(
            "ROUGE-L", np.array([rouge_l(c, several) for c, several in zip(found, wanted)])
        ),
        "CIDEr-D": lambda: _add_cider(scores, found, wanted),
        "language": lambda: _add_language(scores, characters),
    }
    with ExitStack() as programs:
        try:
            if characters or not with_java:
                raise java.Unavailable("it supports English words only" if characters else "Java is switched off")
            metrics |= _start_java(scores, found, wanted, programs)
        except java.Unavailable as error:
            scores.notes += [f"METEOR skipped: {error}", f"SPICE skipped: {error}"]
        with PartBar(part="scoring", total=len(metrics), unit="metric", leave=False) as bar:
            for name, add in metrics.items():
                bar.set_description(f"scoring {scores.images:,} captions: {name}")
                try:
                    add()
                except java.Unavailable as error:
                    scores.notes.append(f"{name} skipped: {error}")
                bar.update()
    return scores


def _start_java(
    scores: Scores, found: Sequence[str], wanted: Sequence[Sequence[str]], programs: ExitStack
) -> dict[str, Callable[[], None]]:
    """Start METEOR and SPICE; returns what adds the scores of each once it has ended, or raises the reason."""

    def add_meteor(counts: np.ndarray) -> None:
        scores.counts["METEOR"] = counts
        scores.per_image["METEOR"] = meteor_of_counts(counts)
        scores.corpus["METEOR"] = float(meteor_of_counts(counts.sum(axis=0)))

    folder = Path(programs.enter_context(tempfile.TemporaryDirectory()))
    starts: dict[str, tuple[Callable[[], java.Program], Callable[[np.ndarray], None]]] = {
        "METEOR": (lambda: java.start_meteor(found, wanted), add_meteor),
        "SPICE": (lambda: java.start_spice(found, wanted, folder), lambda rows: scores.add("SPICE", rows)),
    }
    awaited: dict[str, Callable[[], None]] = {}
    for name, (start, add) in starts.items():
        try:
            program = programs.enter_context(start())
            awaited[name] = lambda program=program, add=add: add(program.result())
        except java.Unavailable as error:
            awaited[name] = partial(_refuse, error)
    return awaited


def _refuse(error: java.Unavailable) -> None:
    raise error


def _add_bleu(scores: Scores, found: Sequence[str], wanted: Sequence[Sequence[str]]) -> None:
    scores.counts["BLEU"] = _bleu_counts(found, wanted)
    for order in range(1, _BLEU_ORDER + 1):
        scores.corpus[f"BLEU-{order}"] = float(bleu_of_counts(scores.counts["BLEU"].sum(axis=0), order))
        scores.per_image[f"BLEU-{order}"] = bleu_of_counts(scores.counts["BLEU"], order)


def _add_cider(scores: Scores, found: Sequence[str], wanted: Sequence[Sequence[str]]) -> None:
    keyed = dict(enumerate(wanted)), {i: [caption] for i, caption in enumerate(found)}
    scores.add("CIDEr-D", cider_scorer().compute_score(*keyed)[1])
    if scores.images == 1:
        scores.notes.append("CIDEr-D of a single image is 0: every n-gram is in every document")


def _add_language(scores: Scores, characters: bool) -> None:
    for order in (1, 2):
        scores.add_language(f"distinct-{order}", distinct_rows(scores.tokens, order))
    scores.add_language(REPEATED, repetition_rows(scores.tokens, 2))
    if not characters:
        scores.add_language(BAD_ENDINGS, bad_ending_rows(scores.tokens))


def bleu_of_counts(counts: np.ndarray, order: int) -> np.ndarray:
    """BLEU of counts summed over images, with the smoothing of the COCO evaluation.

    Args:
        counts: [..., 10] tokens of the candidates, tokens of the references nearest in length, then for n-grams of
            1 to 4 their number in the candidates and how many of them a reference has.
        order: longest n-gram, 1 to 4.
    Returns:
        [...]
    """
    length, wanted = counts[..., 0] + 1e-15, counts[..., 1] + 1e-9
    total, matched = counts[..., 2 : 2 + order] + 1e-9, counts[..., 6 : 6 + order] + 1e-15
    precision = np.prod(matched / total, axis=-1) ** (1 / order)
    return precision * np.exp(np.minimum(0, 1 - wanted / length))


def meteor_of_counts(counts: np.ndarray) -> np.ndarray:
    """METEOR 1.5 for English of counts summed over images (W14-3348, with its tuned parameters).

    Args:
        counts: [..., 23] tokens and function words of both sides, for each of four matchers the matched content and
            function words of both sides, chunks, words matched on both sides.
    Returns:
        [...]
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    weights = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
    content = counts[..., 0:2] - counts[..., 2:4]  # [..., 2] candidate, reference
    total = delta * content + (1 - delta) * counts[..., 2:4]
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)  # matcher, content or function, side
    matched = np.einsum("...mks,m,k->...s", matches, weights, [delta, 1 - delta])
    precision, recall = np.moveaxis(matched / np.maximum(total, 1e-12), -1, 0)
    mean = precision * recall / np.maximum(alpha * precision + (1 - alpha) * recall, 1e-12)
    fragments = 2 * counts[..., 20] / np.maximum(counts[..., 21] + counts[..., 22], 1e-12)
    return mean * (1 - gamma * fragments**beta)


def distinct_share(captions: Sequence[str]) -> float:
    """Share of different captions: near 0 if a model gives every image the same caption."""
    return len({tuple(caption) for caption in words_of(captions)}) / max(1, len(captions))


def cider_scorer() -> Any:
    """The CIDEr-D scorer of pycocoevalcap; needs neither Java nor network. (Rewards: `cider_reward.py`.)

    Raises:
        ClipcapError: it is not installed.
    """
    return _scorer("cider.cider", "Cider")


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of a corpus (arXiv 1411.5726), without Java.

    Args:
        candidates: one caption per image.
        references: the human captions of each image.
    Returns:
        the mean over images, 0 to 10; 0 where there is one image only, since every n-gram is in every document.
    """
    if not candidates:
        return 0.0
    found = {i: [" ".join(tokens)] for i, tokens in enumerate(words_of(candidates))}
    wanted = {i: [" ".join(tokens) for tokens in words_of(several)] for i, several in enumerate(references)}
    scorer = cider_scorer()
    return float(scorer.compute_score(wanted, found)[0]) if any(map(any, wanted.values())) else 0.0


def _check(candidates: Sequence[CaptionTokens], references: Sequence[Sequence[CaptionTokens]]) -> None:
    if len(candidates) != len(references):
        raise ClipcapError(f"{len(candidates)} captions for {len(references)} images with references: give one each")
    if not candidates:
        raise ClipcapError("no captions to score: give at least one image")
    bare = [i for i, several in enumerate(references) if not several]
    if bare:
        raise ClipcapError(
            f"image number {bare[0]} (of {len(bare)}) has no reference captions: leave such images out"
        )
    if not any(caption for several in references for caption in several):
        raise ClipcapError("no reference caption has a word in it: give the human captions of each image")


def _scorer(module: str, name: str) -> Any:
    try:
        return getattr(import_module(f"pycocoevalcap.{module}"), name)()
    except ImportError as error:
        raise ClipcapError(
            "caption scores need the pycocoevalcap package: pip install 'clipcap-toolkit[eval]'"
        ) from error


def _bleu_counts(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> np.ndarray:
    """What `bleu_of_counts` takes, of each image: float64 [images, 10]."""
    scorer = _scorer("bleu.bleu_scorer", "BleuScorer")
    for caption, several in zip(found, wanted):
        scorer += (caption, several)
    rows = []
    for one in scorer.ctest:
        nearest = min(one["reflen"], key=lambda length: (abs(length - one["testlen"]), length))
        rows.append([one["testlen"], nearest, *one["guess"], *one["correct"]])
    return np.array(rows, dtype=np.float64)


_OF_SUMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "METEOR": meteor_of_counts,
    CHAIR_OBJECTS: chair_of_counts,
    MBLEU: partial(mbleu_of_counts, bleu_of_counts=bleu_of_counts),
}
