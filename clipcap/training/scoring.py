"""Rewards of sampled captions: CIDEr-D in a worker process, and what an encoder's text tower says, in this one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.evaluation.metrics.clip_score import PROMPT, clip_score
from clipcap.models.encoders.base import Encoder
from clipcap.scoring.cider_reward import CiderReward
from clipcap.training.config import RewardKind
from clipcap.training.score_worker import ScoreWorker

CLIP_WEIGHT = 2.0  # of CLIPScore beside CIDEr-D (CLIP-Caption-Reward, arXiv 2205.13115)


@dataclass(frozen=True)
class Samples:
    """Captions that the model wrote of training images.

    Attributes:
        images: number of each one's image, among the training images.
        captions: as texts.
        ended: whether each came to its end.
        own: place of each one's image among those of the step.
    """

    images: list[int]
    captions: list[str]
    ended: list[bool]
    own: list[int]


class Scoring:
    """Scores samples.

    Args:
        kind: of the reward.
        references: the captions of each training image.
        end: the end of a caption counts as a word of CIDEr-D.
        worker: CIDEr-D is computed in a process of its own, while the next captions are sampled.
        encoder: whose text tower reads captions, where the reward asks for it.
    """

    def __init__(
        self,
        kind: RewardKind,
        references: Sequence[Sequence[str]],
        end: bool = True,
        worker: bool = False,
        encoder: Encoder | None = None,
    ):
        self.kind, self.encoder = kind, encoder
        self.cider = CiderReward(references, end)
        self._worker = ScoreWorker(references, end) if worker and kind.startswith("cider") else None

    def start(self, samples: Samples) -> Future[list[float]]:
        """Begin to score by CIDEr-D, where the reward asks for it; else every caption has 0."""
        if self._worker is not None:
            return self._worker.start(samples.images, samples.captions, samples.ended)
        done: Future[list[float]] = Future()
        plain = self.kind.startswith("cider")
        scored = self.cider.score(samples.images, samples.captions, samples.ended) if plain else []
        done.set_result(scored or [0.0] * len(samples.captions))
        return done

    def finish(self, samples: Samples, started: Future[list[float]], clip_embedding: Tensor) -> Tensor:
        """The rewards, float64 [n].

        Args:
            started: what `start` gave.
            clip_embedding: [N, D], of all images of the step.
        """
        return torch.tensor(started.result(), dtype=torch.float64) + self._of_encoder(
            samples.captions, samples.own, clip_embedding
        )

    def close(self) -> None:
        """End the worker process, where there is one."""
        if self._worker is not None:
            self._worker.close()

    def held_out(self, captions: Sequence[str], references: Sequence[Sequence[str]], clip_embedding: Tensor) -> float:
        """The mean reward of captions of other images [N, D], one each; they are taken to have ended."""
        of_encoder = self._of_encoder(captions, list(range(len(captions))), clip_embedding)
        if not self.kind.startswith("cider"):
            return of_encoder.mean().item()
        scored = self.cider.score_against(references, captions, [True] * len(captions))
        return (torch.tensor(scored, dtype=torch.float64) + of_encoder).mean().item()

    @torch.no_grad()
    def _of_encoder(self, captions: Sequence[str], own: Sequence[int], clip_embedding: Tensor) -> Tensor:
        """CLIPScore, or the probability with which a caption finds its own image among all; 0 where none is asked."""
        if self.encoder is None:
            return torch.zeros(len(captions), dtype=torch.float64)
        images = F.normalize(clip_embedding.float().cpu(), dim=1)  # [N, D]
        if self.kind == "retrieval":
            texts = F.normalize(self.encoder.encode_texts(captions).cpu(), dim=1)  # [n, D]
            found = (self.encoder.logit_scale * texts @ images.T).softmax(dim=1)  # [n, N]
            return found.gather(1, torch.tensor(own)[:, None])[:, 0].double()
        texts = self.encoder.encode_texts([PROMPT + caption for caption in captions]).cpu()
        scores = clip_score(images[torch.tensor(own)], texts).double()
        return CLIP_WEIGHT * scores if self.kind == "cider+clip" else scores
