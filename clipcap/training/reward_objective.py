"""Self-critical training: captions that score above the others of their image become likelier (arXiv 1612.00563).

    loss = −Σᵢ Aᵢ Σₜ log p(sᵢₜ) / tokens of all samples,   Aᵢ = rᵢ − mean reward of the image's other samples

The mean of the others as the baseline is that of arXiv 2003.09971: it needs no greedy caption. The captions are the
beams of a beam search (arXiv 1912.08226, section 3.4), or drawn from the model's distribution.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.captioning.beam_search import beam_search
from clipcap.captioning.cached_decoder import CachedDecoder
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import resolve, stop_token_ids
from clipcap.captioning.sampling import sample
from clipcap.captioning.tidy import tidy
from clipcap.models.base import IGNORE
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.given import Given
from clipcap.runtime.messages import logger
from clipcap.scoring.cider_reward import bad_endings, mean_length
from clipcap.training.batch_order import MOST_TOGETHER
from clipcap.training.config import ObjectiveConfig
from clipcap.training.dataset import Batch, BatchShare, Layout
from clipcap.training.objective import Steps, step_number
from clipcap.training.scoring import Samples, Scoring

LONGEST_SAMPLE = 67  # tokens, as of captions that are predicted


class RewardObjective:
    """Samples of the model itself, each weighted by how much better it scores than the others of its image.

    Samples and the loss are of a model without dropout, and of the same weights: no window is made ahead.

    Args:
        steps: of the captions; a step has `size` samples.
        model: that is trained.
        tokenizer: of its language model.
        accelerator: of the run.
        scoring: gives the rewards.
        config: how many samples, and the weight of human captions beside them.
    """

    ahead = False

    def __init__(
        self,
        steps: Steps,
        model: ClipCaptionModel,
        tokenizer: Tokenizer,
        accelerator: Accelerator,
        scoring: Scoring,
        config: ObjectiveConfig,
    ):
        self.steps, self.model, self.tokenizer, self.accelerator = steps, model, tokenizer, accelerator
        self.scoring, self.config = scoring, config
        index = steps.data.features.image_index
        _, self.first = np.unique(index, return_index=True)  # a caption of each image, int64 [images]
        order = np.argsort(index, kind="stable")
        self._captions = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)  # of each image
        self.per_step = max(1, steps.size // config.samples)  # images of a step
        longest = min(LONGEST_SAMPLE, steps.data.max_tokens)
        if config.sample_by == "beam":
            how = DecodeConfig(beam=True, beam_size=config.samples, max_new_tokens=longest)
        else:
            how = DecodeConfig(num_captions=config.samples, top_p=1.0, max_new_tokens=longest)
        self.how = resolve(how, model)
        self.stop = stop_token_ids(tokenizer, self.how)
        self.seconds = {"sampling": 0.0, "waiting for scores": 0.0}
        self._began, self._rewards = time.perf_counter(), list[float]()

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch: each image once."""
        return -(-len(self.first) // self.per_step)

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step, from step `skip` on."""
        images = np.random.default_rng((self.steps.seed, epoch)).permutation(len(self.first))
        self._began, self.seconds = time.perf_counter(), dict.fromkeys(self.seconds, 0.0)
        self._rewards.clear()
        for step in range(skip, self.steps_per_epoch()):
            of_step = images[step * self.per_step : (step + 1) * self.per_step]
            yield self._window(of_step, step_number(self, epoch, step))

    def _window(self, images: np.ndarray, step: int) -> list[Batch]:
        """The micro-batches of a step of these images: sampled one after the other, and scored meanwhile."""
        parts = self.steps.parts
        mine = BatchShare(parts.rank, parts.world, max(1, parts.micro // self.config.samples))
        places = mine.of(np.arange(len(images)))  # of each micro-batch, in the step
        given = self._given(images)
        began, waiting = time.perf_counter(), []
        for chosen in places:
            if not len(chosen):
                waiting.append(None)
                continue
            tokens, samples = self._sample(images, chosen, given[torch.from_numpy(chosen)], step)
            waiting.append((chosen, tokens, samples, self.scoring.start(samples)))
        self.seconds["sampling"] += (sampled := time.perf_counter()) - began
        batches = []
        for started in waiting:
            if started is None:
                batches.append(self._idle(images, given))
                continue
            chosen, tokens, samples, future = started
            rewards = self.scoring.finish(samples, future, given.vectors).view(len(chosen), -1)  # [n, samples]
            self._rewards.append(rewards.mean().item())
            batches.append(self._batch(images, chosen, given, tokens, advantages(rewards), step))
        self.seconds["waiting for scores"] += time.perf_counter() - sampled
        return batches

    def _given(self, images: np.ndarray) -> Given:
        features = self.steps.data.features
        return features.given(features.caption_rows[self.first[images]])

    @torch.no_grad()
    def _sample(
        self, images: np.ndarray, places: np.ndarray, given: Given, step: int
    ) -> tuple[list[np.ndarray], Samples]:
        """The tokens of `samples` captions of each of these images, those of an image side by side; and as texts."""
        training = self.model.training
        self.model.eval()
        with self.accelerator.autocast():
            given = given.to(self.accelerator.device)
            decoder = CachedDecoder(self.model, self.model.prefix(given), self.model.prefix_mask(given))
            if self.how.beam:
                found = beam_search(decoder, self.how, self.stop, [])
            else:
                how = replace(self.how, seed=(self.steps.seed * 1_000_003 + step) % 2**32)
                found = sample(decoder, how, self.stop, [], places.tolist(), draw=draw_any)
        self.model.train(training)
        rows, lengths = found.tokens.flatten(0, 1).cpu().numpy(), found.length.flatten().long().tolist()
        tokens = [row[:length] for row, length in zip(rows, lengths)]
        ended = [bool(np.isin(one[-1], self.stop)) for one in tokens]
        texts = [
            tidy(str(self.tokenizer.decode(one[:-1] if whole else one, clean_up_tokenization_spaces=False)))
            for one, whole in zip(tokens, ended)
        ]
        own = np.repeat(places, self.config.samples)
        return tokens, Samples(images[own].tolist(), texts, ended, own.tolist())

    def _batch(
        self,
        images: np.ndarray,
        places: np.ndarray,
        given: Given,
        tokens: list[np.ndarray],
        advantage: Tensor,
        step: int,
    ) -> Batch:
        """Samples as captions whose tokens weigh what they gained; with --xe_weight a human caption of each image."""
        count, data = self.config.samples, self.steps.data
        written: list[np.ndarray] = []
        weights: list[float] = []
        for number, place in enumerate(places.tolist()):
            written += tokens[number * count : (number + 1) * count]
            weights += advantage[number].tolist()
            if self.config.xe_weight:
                captions = self._captions[images[place]]
                rng = np.random.default_rng((self.steps.seed, step, place))
                human = int(captions[rng.integers(len(captions))])
                written.append(np.asarray(data.tokens[data.starts[human] : data.starts[human + 1]], np.int64))
                weights.append(self.config.xe_weight)
        each = len(written) // len(places)  # captions of an image
        together = min(each, MOST_TOGETHER) if data.share_prefix else 1
        layout = Layout(
            np.tile(np.arange(each) % together == 0, len(places)), np.array([len(one) for one in written])
        )
        own = np.repeat(places, each)
        rows = given[torch.from_numpy(own[layout.first])]
        batch = layout.batch(rows, np.concatenate(written), self.first[images[own]])
        batch.most_columns = self.steps.data.max_tokens
        of_token = np.repeat(np.array(weights, np.float32), layout.lengths)
        batch.weights = torch.from_numpy(layout.fill(of_token, 0))
        return batch

    def _idle(self, images: np.ndarray, given: Given) -> Batch:
        """A batch that counts for nothing, where this process has no share of a step."""
        layout = Layout(np.array([True]), np.array([1]))
        batch = layout.batch(given[:1], np.array(self.stop[:1]), self.first[images[:1]])
        batch.labels.fill_(IGNORE)
        batch.weights = torch.zeros(batch.labels.shape)
        return batch

    def describe(self) -> list[str]:
        """What is sampled and scored, and where references are too few to score by."""
        config, counts = self.config, np.array([len(captions) for captions in self._captions])
        human = f", human captions with the weight {config.xe_weight:g}" if config.xe_weight else ""
        samples = f"{config.samples} " + ("beams" if self.how.beam else "samples")
        lines = [
            f"reward {config.reward}: {samples} of each of {self.per_step} images a step, "
            f"{self.steps_per_epoch()} steps an epoch{human}"
        ]
        if single := int((counts == 1).sum()):
            lines.append(
                f"{single:,} of {len(counts):,} images have a single caption: CIDEr-D against one caption is a noisy "
                f"reward, --reward cider+clip is steadier"
            )
        return lines

    def identity(self) -> dict[str, Any]:
        """By name, what decides the weights besides data and model."""
        names = ("reward", "samples", "xe_weight", "reward_end")
        by = "beam" if self.how.beam else None  # None: as in runs before there was the option
        return {"objective": "reward", **{name: getattr(self.config, name) for name in names}, "sample_by": by}

    def scores(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], clip_embedding: Tensor
    ) -> dict[str, float]:
        """Rewards of held-out captions and of the epoch's samples, beside what shows a reward that is gamed."""
        total = max(time.perf_counter() - self._began, 1e-9)
        shares = ", ".join(f"{name} {spent / total:.0%}" for name, spent in self.seconds.items())
        logger.info(f"of the time of the epoch: {shares}")
        return {
            "reward": self.scoring.held_out(captions, references, clip_embedding),
            "sample_reward": float(np.mean(self._rewards)) if self._rewards else 0.0,
            "bad_endings": bad_endings(captions),
            "length": mean_length(captions),
        }

    def close(self) -> None:
        """End the process that scores."""
        self.scoring.close()


def advantages(rewards: Tensor) -> Tensor:
    """How much each sample's reward is above the mean of the others of its image, [images, samples ≥ 2]."""
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def draw_any(log_probs: Tensor, uniform: Tensor, top_k: int, top_p: float) -> Tensor:
    """Draw a token from the whole distribution, without sorting it: [N, K, V] and [N, K] in [0, 1) → [N, K]."""
    cumulative = log_probs.exp().cumsum(dim=-1)
    wanted = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, wanted, right=True).clamp(max=log_probs.shape[-1] - 1)[..., 0]
