"""`clipcap features report`: what a careful person looks at before training, as a page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.evaluation.config import DataReportConfig
from clipcap.evaluation.judges import encode_texts
from clipcap.evaluation.metrics.objects import objects_in, read_objects
from clipcap.evaluation.report.data_page import DataPage, Group, Pair, write_data_page
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.images.word_cloud import count_words
from clipcap.models.encoders.load import load_encoder
from clipcap.retrieval.duplicates import near_duplicates
from clipcap.retrieval.exact import scales_of, search
from clipcap.retrieval.index import Index
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import without_folders
from clipcap.scoring.words import words_of

MOST_COMPARED = 30_000  # rows that are searched for near-duplicates: the time grows with their square
LONG = 40  # words: a caption is seldom longer, and is cut at 77 tokens of CLIP
SAMPLE = 60  # pictures shown where captions are not compared with them
FEW = 500  # images: fewer are few for a mapping network from scratch


@dataclass
class Survey:
    """What the captions and the pictures of a feature file are like.

    Attributes:
        lengths: words of each caption.
        per_image: captions of each image.
        repeated: captions that are there several times, the commonest first.
        words: how many images' captions hold a word, the commonest first.
        missing: pictures that are not where the file says.
    """

    lengths: list[int] = field(default_factory=list)
    per_image: list[int] = field(default_factory=list)
    repeated: list[tuple[str, int]] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    missing: int = 0


@writes_to("config.out")
def features_report(path: str, config: DataReportConfig) -> Path:
    """Write a page on the photos and captions of a feature file: counts, words, near-duplicates, pairs that disagree.

    Args:
        path: the feature file.
        config: a second file to look for leaks in, and what to look at.
    Returns:
        the page.
    Raises:
        ClipcapError: not a feature file, or the page cannot be written.
    """
    features = read_features(path, encoder=config.clip_model_type)
    if not features.num_images:
        raise ClipcapError(f"{path}: holds no images")
    survey = survey_of(features)
    page = DataPage(
        title=Path(path).name,
        facts=_facts(features, survey),
        lengths=survey.lengths,
        per_image=survey.per_image,
        captions=list(features.captions),
        repeated=survey.repeated[:12],
    )
    page.words = _word_shares(features, survey, config.objects)
    page.objects = config.objects is not None
    page.duplicates, note = _duplicates(features, config.duplicate_cosine)
    page.notes += [note] if note else []
    if config.val:
        page.leaks = _leaks(features, read_features(config.val, encoder=config.clip_model_type), config)
    try:
        page.pairs, page.paired, page.shuffled = _pairs(features, config)
    except ClipcapError as error:
        page.notes.append(without_folders(f"captions were not compared with their pictures: {error}"))
        page.sample = _sample(features)
    page.findings = findings(features, survey, page, config.val is not None)
    for finding in page.findings:
        logger.info(f"- {finding}")
    return write_data_page(Path(config.out).expanduser(), page)


def survey_of(features: Features) -> Survey:
    """Count captions, words and missing pictures."""
    captions = list(features.captions)
    images = np.asarray(features.row_images)
    per_image = np.bincount(images[np.asarray(features.caption_rows)], minlength=int(images.max()) + 1)
    commonest = Counter(caption.strip() for caption in captions).most_common()
    words: Counter[str] = Counter()
    for texts in _captions_by_image(features).values():
        words.update(count_words(texts).keys())
    paths = dict(zip(images.tolist(), features.image_paths))
    return Survey(
        lengths=[len(caption.split()) for caption in captions],
        per_image=per_image.tolist(),
        repeated=[(caption, count) for caption, count in commonest if count > 1],
        words=words,
        missing=sum(bool(place) and not os.path.isfile(place) for place in paths.values()),
    )


def _captions_by_image(features: Features) -> dict[int, list[str]]:
    by_image: dict[int, list[str]] = {}
    images = np.asarray(features.row_images)[np.asarray(features.caption_rows)]
    for image, caption in zip(images.tolist(), features.captions):
        by_image.setdefault(image, []).append(caption)
    return by_image


def _facts(features: Features, survey: Survey) -> dict[str, str]:
    count = len(survey.per_image)
    facts = {
        "file": features.path.name,
        "encoder": features.meta.encoder or "not stated in the file",
        "images": f"{count:,}",
        "captions": f"{len(survey.lengths):,}",
    }
    if survey.missing:
        facts["pictures"] = f"{survey.missing:,} of {count:,} are not at their place"
    return {name: without_folders(fact) for name, fact in facts.items()}


def _word_shares(features: Features, survey: Survey, objects: str | None) -> list[tuple[str, float]]:
    """The commonest words, or the objects of a list, with the share of images whose captions have them."""
    counts = survey.words
    if objects:
        names = read_objects(objects)
        counts = Counter(dict.fromkeys(names.values(), 0))
        for texts in _captions_by_image(features).values():
            found = [objects_in(tokens, names) for tokens in words_of(texts)]
            counts.update(set().union(*found))
    captioned = max(1, sum(count > 0 for count in survey.per_image))
    return [(word, count / captioned) for word, count in counts.most_common()]


def _duplicates(features: Features, cosine: float) -> tuple[list[Group], str]:
    """Groups of pictures that are nearly the same, and a note where not all were compared."""
    note = ""
    if features.num_images > MOST_COMPARED:
        note = f"near-duplicates were looked for among the first {MOST_COMPARED:,} pictures alone"
        features = features.subset_by_row(np.arange(MOST_COMPARED))
    places = dict(zip(map(str, features.image_ids), features.image_paths))
    found = near_duplicates(Index.of(features), cosine)
    return [Group(least, [(name, places.get(name)) for name in members]) for least, members in found], note


def _leaks(features: Features, other: Features, config: DataReportConfig) -> list[Group]:
    """Pictures of another file whose nearest picture here is nearly the same: what is tested was trained on."""
    check_same_encoder(
        other.meta, other.dim, features.meta.encoder, features.meta.encoder_weights_id, features.dim,
        str(config.val), f"the file {features.path}",
    )  # fmt: skip
    rows = other.rows(slice(None)).float()
    good = torch.nonzero(scales_of(rows) > 0).flatten()
    nearest, scores = search(features, rows[good], 1)
    found = []
    for row, near, score in zip(good.tolist(), nearest.flatten().tolist(), scores.flatten().tolist()):
        if score >= config.duplicate_cosine:
            own = (str(other.image_ids[row]), other.image_paths[row])
            found.append(Group(score, [own, (str(features.image_ids[near]), features.image_paths[near])]))
    return sorted(found, key=lambda group: -group.cosine)


def _pairs(features: Features, config: DataReportConfig) -> tuple[list[Pair], list[float], list[float]]:
    """Captions with the cosine to their picture, the worst first, and these cosines beside those of other pictures.

    Raises:
        ClipcapError: the encoder has no text tower, or is not at hand.
    """
    name = features.meta.encoder
    if not config.pairs:
        raise ClipcapError("switched off")
    if name is None:
        raise ClipcapError("the file does not state its encoder: name it with --clip_model_type")
    captions = len(features.captions)
    chosen = np.unique(np.linspace(0, captions - 1, min(config.pairs, captions)).astype(int))
    if len(chosen) < 2:
        raise ClipcapError("there are fewer than two captions")
    encoder = load_encoder(name, config.device)
    texts = F.normalize(encode_texts(encoder, [features.captions[int(i)] for i in chosen]).float(), dim=1)  # [P, D]
    rows: list[int] = np.asarray(features.caption_rows)[chosen].tolist()
    images = F.normalize(features.rows(rows).float(), dim=1)  # [P, D]
    paired = (images * texts).sum(dim=1)
    order = np.random.default_rng(0).permutation(len(chosen))
    own = np.asarray(features.row_images)[rows]
    apart = own != own[order]
    shuffled = (images * texts[torch.from_numpy(order)]).sum(dim=1)[torch.from_numpy(apart)]
    worst = torch.argsort(paired).tolist()
    pairs = [
        Pair(
            str(features.image_ids[rows[i]]),
            features.image_paths[rows[i]],
            features.captions[int(chosen[i])],
            float(paired[i]),
        )
        for i in worst
    ]
    return pairs, paired.tolist(), shuffled.tolist()


def _sample(features: Features) -> list[tuple[str, str | None, list[str]]]:
    """Some pictures with their captions, spread over the file."""
    rows = np.unique(np.linspace(0, features.num_images - 1, min(SAMPLE, features.num_images)).astype(int)).tolist()
    return [(str(features.image_ids[row]), features.image_paths[row], features.captions_of(row)) for row in rows]


def findings(features: Features, survey: Survey, page: DataPage, looked_for_leaks: bool) -> list[str]:
    """What to look at before training, each in a sentence."""
    found = []
    count, captions = len(survey.per_image), max(1, len(survey.lengths))
    bare = sum(number == 0 for number in survey.per_image)
    if bare:
        found.append(f"{bare:,} of {count:,} images have no caption")
    if count < FEW:
        found.append(f"{count:,} images are few for a captioner from scratch: start from one that is trained")
    if survey.missing:
        found.append(f"{survey.missing:,} pictures are not where the file says: reports will not show them")
    copies = sum(number - 1 for _, number in survey.repeated)
    if copies > 0.02 * captions:
        text, times = survey.repeated[0]
        found.append(f"{copies / captions:.0%} of the captions repeat another one; '{text}' is there {times:,} times")
    if page.duplicates:
        more = sum(len(group.members) - 1 for group in page.duplicates)
        found.append(
            f"near-duplicates: {_count(more, 'picture')} too many, in {_count(len(page.duplicates), 'group')}"
        )
    if page.leaks:
        found.append(
            f"leaks: {_count(len(page.leaks), 'held-out picture')} with a near-duplicate in the training set: scores "
            f"on them are too good"
        )
    elif not looked_for_leaks:
        found.append("pictures that training and validation share were not looked for: pass the other file as --val")
    if page.words and page.words[0][1] > 0.5:
        word, share = page.words[0]
        found.append(f"'{word}' is in the captions of {share:.0%} of the images: a captioner learns to say it of all")
    long = sum(length > LONG for length in survey.lengths)
    if long:
        found.append(f"{long:,} captions have more than {LONG} words: the ends of long ones are cut")
    empty = sum(length == 0 for length in survey.lengths)
    if empty:
        found.append(f"{empty:,} captions are empty")
    if 0 < captions <= count and not bare:
        found.append("there is one caption an image: CIDEr-D of a single reference is noisy")
    return found + disagreement(page.paired, page.shuffled)


def _count(number: int, of: str) -> str:
    return f"{number:,} {of}{'' if number == 1 else 's'}"


def disagreement(paired: Sequence[float], shuffled: Sequence[float]) -> list[str]:
    """A finding on captions that fit their picture no better than others' captions do."""
    if len(paired) < 2 or len(shuffled) < 2:
        return []
    usual = float(np.mean(shuffled))
    poor = float(np.mean(np.asarray(paired) < usual))
    gap = float(np.mean(paired)) - usual
    lines = [f"{poor:.0%} of the captions fit their picture no better than a caption of another picture does"]
    if gap < float(np.std(shuffled)):
        lines.append(
            "captions and pictures hardly agree: are they in the right order, and does the encoder know them?"
        )
    return lines if poor > 0.02 or len(lines) > 1 else []
