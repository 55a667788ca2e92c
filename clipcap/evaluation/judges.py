"""Captions judged by encoders that see the pictures: CLIPScore, PAC-S and self-retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.image_inputs import embed_pictures
from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics.clip_score import PAC_WEIGHT, PROMPT, WEIGHT, clip_score, ref_clip_score
from clipcap.evaluation.metrics.recall import own_ranks
from clipcap.evaluation.metrics.score import RECALLS
from clipcap.features.feature_set import Features
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.load import load_encoder
from clipcap.runtime.progress import no_bar

CLIP_SCORE, REF_CLIP_SCORE, PAC_SCORE, REF_PAC_SCORE = "CLIPScore", "RefCLIPScore", "PAC-S", "RefPAC-S"
BY_CLIP, BY_PAC = "CLIPScore by", "PAC-S by"  # facts of a run
_TEXTS, _PICTURES = 256, 32  # encoded together


@dataclass
class Judgement:
    """What encoders say of captions.

    Attributes:
        scores: CLIPScore, RefCLIPScore, PAC-S, RefPAC-S, float32 [N] each.
        ranks: of its own image for each caption, [N]; None where no encoder of texts is at hand, or of one image.
        facts: which encoder judged.
        notes: what was skipped, and why.
    """

    scores: dict[str, np.ndarray] = field(default_factory=dict)
    ranks: np.ndarray | None = None
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def judge(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    captioner: Captioner,
    features: Features,
    rows: Sequence[int],
    score_with: str | None = None,
    pac_weights: str | None = None,
) -> Judgement:
    """Judge a caption of each of N images.

    Args:
        captions: N, by image.
        references: the human captions of the same images, in the same order.
        captioner: whose own encoder judges where `score_with` is None.
        features: with the images.
        rows: N, of the images.
        score_with: name of a second encoder, which sees the pictures themselves.
        pac_weights: file of PAC-S, a CLIP that was fine-tuned to judge captions, or the name of any encoder of it.
    """
    found = Judgement()
    texts, several = list(captions.values()), list(references.values())
    try:
        encoder = captioner.judge(score_with)
        images = features.rows(rows) if score_with is None else encode_pictures(encoder, features, rows)  # [N, D]
        scores = _scores(encoder, images, texts, several, WEIGHT)
        if len(texts) > 1:
            found.ranks = own_ranks(images.to(scores[0].device), encode_texts(encoder, texts))
    except ClipcapError as error:
        found.notes.append(f"{CLIP_SCORE} skipped: {error} (and self-retrieval)")
    else:
        same = score_with is None or encoder.weights_id == captioner.model.config.encoder_weights_id
        found.facts[BY_CLIP] = encoder.name + (" (same encoder as the captioner reads)" if same else "")
        found.scores |= {name: one.cpu().numpy() for name, one in zip((CLIP_SCORE, REF_CLIP_SCORE), scores)}
    if found.ranks is not None:
        found.notes.append(describe_chance(len(texts)))
    if pac_weights:
        try:
            encoder = load_encoder(pac_weights, str(captioner.device))
            images = encode_pictures(encoder, features, rows)
            scores = _scores(encoder, images, texts, several, PAC_WEIGHT)
        except ClipcapError as error:
            found.notes.append(f"{PAC_SCORE} skipped: {error}")
        else:
            found.facts[BY_PAC] = encoder.name
            found.scores |= {name: one.cpu().numpy() for name, one in zip((PAC_SCORE, REF_PAC_SCORE), scores)}
    return found


def chance_of_recall(images: int) -> dict[str, float]:
    """Recall at 1, 5 and 10 of captions that say nothing of their image."""
    return {name: min(last, images) / images for name, last in RECALLS.items()}


def describe_chance(images: int) -> str:
    """A note on what self-retrieval is, and its values by chance."""
    by_chance = ", ".join(f"{name} {share:.4f}" for name, share in chance_of_recall(images).items())
    return (
        f"self-retrieval: each caption looks for its own image among all {images:,}; by chance {by_chance}, "
        f"median rank {(images + 1) / 2:g}"
    )


def _scores(
    encoder: Encoder, images: Tensor, captions: Sequence[str], references: Sequence[Sequence[str]], weight: float
) -> tuple[Tensor, Tensor]:
    """The score without and with references, [N] each; images [N, D]."""
    encoded = encode_texts(encoder, [PROMPT + caption for caption in captions])  # [N, D]
    flat = encode_texts(encoder, [PROMPT + text for several in references for text in several])  # [M, D]
    human = flat.split([len(several) for several in references])
    return clip_score(images, encoded, weight), ref_clip_score(images, encoded, human, weight)


def encode_pictures(encoder: Encoder, features: Features, rows: Sequence[int]) -> Tensor:
    """Encode the pictures of these rows with another encoder than that of the features: [N, D].

    Raises:
        ClipcapError: the features hold no path of a picture, or it cannot be read.
    """
    paths: list[str] = []
    for row in rows:
        path = features.image_paths[row]
        if not path:
            raise ClipcapError(
                f"{features.path}: holds no path of the picture {features.image_ids[row]}, which the judge looks at"
            )
        paths.append(path)
    starts = tqdm(range(0, len(paths), _PICTURES), desc=f"{encoder.name}: pictures", disable=no_bar(), leave=False)
    return torch.cat([embed_pictures(encoder, paths[i : i + _PICTURES]).cpu() for i in starts])


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Texts → embeddings [N, D]."""
    starts = tqdm(range(0, len(texts), _TEXTS), desc=f"{encoder.name}: captions", disable=no_bar(), leave=False)
    return torch.cat([encoder.encode_texts(texts[i : i + _TEXTS]).cpu() for i in starts])
