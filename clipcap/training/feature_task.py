"""Training on features and captions, as the loop sees it: what captioners and CLIP-GPT have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.captioning.batches import caption_batches, stored_embeddings
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import Caption
from clipcap.captioning.fixed_step import fixed_steps
from clipcap.captioning.tidy import collapsed, tidy
from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics.score import distinct_share
from clipcap.features.feature_set import Features
from clipcap.images.grid import picture_grid
from clipcap.models.base import PrefixLM
from clipcap.models.given import Given
from clipcap.models.kernels.shared_prefix import can_share_prefix
from clipcap.models.language_model import checkpoint_layers, max_positions
from clipcap.runtime.messages import logger
from clipcap.runtime.text import counted, in_short
from clipcap.scoring.cider_reward import CiderReward
from clipcap.training.accelerator import multiply_in_bfloat16
from clipcap.training.config import FeatureTaskConfig, LoopConfig
from clipcap.training.dataset import Batch, BatchShare, CaptionDataset

ON_SHEET = 9  # held-out images that a tracker shows with their captions
SHOWN = 3  # held-out captions printed each epoch
DECODED_TOGETHER = 64
ENOUGH = 64  # captioned images whose CIDEr-D tells epochs apart
LONGEST_SHOWN = 67  # tokens of a held-out caption, as in the original's decoding


Config = TypeVar("Config", bound=FeatureTaskConfig)
Model = TypeVar("Model", bound=PrefixLM)


class FeatureTask(ABC, Generic[Config, Model]):
    """A task (`clipcap.training.task.Task`) but for its model's own part: batches, losses, files.

    Args:
        config: what is learnt, and how.
        loop: options of the training loop.
        model: with its initial weights.
        tokenizer: of its language model.
        features: to train on.
        val: held out, or None.
        accelerator: of the run.
        reference: captions become tokens as in the original.
        share_prefix: captions of an image may share its prefix, where the language model can do it.
    Raises:
        ClipcapError: the language model's layers cannot be checkpointed, no caption fits, or captions are to be
            scored and cannot be.
    """

    def __init__(
        self,
        config: Config,
        loop: LoopConfig,
        model: Model,
        tokenizer: Tokenizer,
        features: Features,
        val: Features | None,
        accelerator: Accelerator,
        *,
        reference: bool = False,
        share_prefix: bool = False,
    ):
        self.config, self.seed, self.model = config, loop.seed, model
        self.tokenizer, self.accelerator = tokenizer, accelerator
        multiply_in_bfloat16(model, accelerator)
        if config.gradient_checkpointing:
            checkpoint_layers(model.lm)
        shares = share_prefix and can_share_prefix(model.lm)
        how = (tokenizer, self.caption_limit(), reference, shares)
        self.data = CaptionDataset(features, *how)
        self.val = CaptionDataset(val, *how) if val is not None else None
        self._unable_to_share = share_prefix and not shares
        self.parts = BatchShare(accelerator.process_index, accelerator.num_processes, config.bs)
        self.step_size = config.bs * accelerator.num_processes * loop.grad_accum
        self._shown = self._images_to_caption()
        self._written: list[str] = []  # captions of those images by the last validation
        self._judge = None if reference and config.select == "auto" else self._make_judge()

    def _make_judge(self) -> CiderReward | None:
        """What scores the captions that choose `best`; None where the loss does.

        On few photos the loss of a language model that is tuned rises while its captions still become better.
        """
        select, images = self.config.select, len(self._shown)
        if select == "cider" and not images:
            raise ClipcapError("--select cider needs validation images: pass --val, and --val_captions above 0")
        if select == "cider" or (select == "auto" and images >= ENOUGH and not self.config.overfit):
            return CiderReward([wanted for _, wanted in self._shown], end=False)
        return None

    @abstractmethod
    def caption_limit(self) -> int:
        """Longest caption in tokens, its end-of-text included."""

    @abstractmethod
    def decode(self, given: Given, how: DecodeConfig) -> list[list[Caption]]:
        """Captions of what is given of N images."""

    def describe(self) -> str:
        """What is trained on, in one line or two."""
        lines = [_size("training on", self.data)]
        lines.append(_size("validating on", self.val) if self.val else "no validation: pass --val FILE or --val 0.1")
        count = self.steps_per_epoch()
        steps = f"{counted(count, 'step')} of {counted(self.step_size, 'caption')} an epoch"
        lines.append(f"{steps}; captions of an image share its prefix" if self.data.shares else steps)
        if self._unable_to_share:
            kind = self.model.lm.config.model_type
            lines.append(f"{kind} models cannot compute a prefix once for several captions: it is done for each")
        if self._judge is not None:
            lines.append(
                f"the best epoch is that of the highest CIDEr-D of {len(self._shown)} held-out images (--select)"
            )
        return "\n".join(lines)

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.data.count_steps(self.step_size)

    def images(self, batch: Batch) -> list[str]:
        """The id of each caption's image."""
        features, own = self.data.features, len(self.data)
        return [
            features.image_ids[int(features.caption_rows[number])] if number < own else "of --extra"
            for number in batch.captions
        ]

    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the loop's options; places of files do not."""
        options = ("bs", "lr", "max_tokens", "dropout", "overfit")
        model = ("tune", "lora_rank", "normalize_prefix")
        return {
            "captions": len(self.data),
            "label tokens": len(self.data.tokens),
            "checksum of the captions": self.data.checksum(),
            **{name: getattr(self.config, name) for name in options},
            **{name: getattr(self.model.config, name) for name in model},
        }

    def caption_held_out(self, **how: Any) -> dict[str, float]:
        """Scores of captions of the chosen validation images, written greedily; this process writes its share.

        Args:
            how: further options of the decoding.
        """
        if self.val is None or not self._shown:
            return {}
        rows = [row for row, _ in self._shown]
        room = max_positions(self.model.lm) - self.model.longest_prefix
        greedy = DecodeConfig(greedy=True, max_new_tokens=min(LONGEST_SHOWN, room), **how)
        mine = range(self.parts.rank, len(rows), self.parts.world)
        found = []
        for batch, captions in caption_batches(
            lambda given, _: self.decode(given.to(self.accelerator.device), greedy),
            stored_embeddings(self.val.features, rows[self.parts.rank :: self.parts.world], DECODED_TOGETHER, mine),
        ):
            found += [(number, several[0].text) for number, several in zip(batch.numbers, captions)]
            found += [(number, "") for number in batch.bad]  # the model cannot caption what is not finite
        fixed_steps.forget(self.model)  # training needs the memory
        self._written = captions = [text for _, text in sorted(gather_object(found))]
        return self.report(captions, [wanted for _, wanted in self._shown])

    def sheet(self) -> Image.Image | None:
        """Some of the captioned validation images, each with its caption and a human one; None without pictures."""
        paths = [] if self.val is None else [self.val.features.image_paths[row] for row, _ in self._shown[:ON_SHEET]]
        if not any(paths) or not self._written:
            return None
        labels = [tidy(text) for text in self._written[: len(paths)]]
        return picture_grid(
            paths, labels, notes=[f"human: {tidy(wanted[0])}" for _, wanted in self._shown[:ON_SHEET]]
        )

    def shown(self) -> Tensor:
        """The CLIP embeddings of the validation images that are captioned, [N, D]."""
        assert self.val is not None, "captions of held-out images have been asked for"
        return self.val.features.rows([row for row, _ in self._shown])

    def _images_to_caption(self) -> list[tuple[int, list[str]]]:
        """Some validation images, spread over the set: a row of each and all its captions."""
        if self.val is None or not self.config.val_captions:
            return []
        features = self.val.features
        image_of_caption = features.image_index
        images, first = np.unique(image_of_caption, return_index=True)
        chosen = slice(None, None, max(1, len(images) // self.config.val_captions))
        shown = []
        for image, caption in list(zip(images[chosen], first[chosen]))[: self.config.val_captions]:
            references = [features.captions[int(i)] for i in np.flatnonzero(image_of_caption == image)]
            shown.append((int(features.caption_rows[caption]), references))
        return shown

    def report(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Print the first captions and a warning where they are all alike; score them."""
        for caption, wanted in list(zip(captions, references))[:SHOWN]:
            logger.info(f"  {in_short(tidy(caption))!r}  (human: {in_short(tidy(wanted[0]))!r})")
        scores = {"distinct": distinct_share(captions)}
        if different := collapsed(captions):
            advice = "more epochs or a higher --lr help" + ", or --tune full" * (self.model.config.tune != "full")
            logger.warning(
                f"only {different} different caption{'s' * (different > 1)} for {len(captions)} images; the "
                f"model does not use the image yet ({advice})"
            )
        if self.config.overfit:
            exact = [tidy(c) in {tidy(w) for w in wanted} for c, wanted in zip(captions, references)]
            scores["reproduced"] = sum(exact) / len(exact)
        if self._judge is not None:
            found = self._judge.score(range(len(captions)), captions, [True] * len(captions))
            scores["cider"] = sum(found) / len(found)
        return scores

    def score(self, metrics: Mapping[str, float]) -> float:
        """What decides `best`, lower is better: CIDEr-D, or the validation (else the training) loss.

        As long as no caption has anything of its references, CIDEr-D is 0 and tells nothing: the loss does.
        """
        if self._judge is not None and metrics["cider"] > 0:
            return -metrics["cider"]
        return metrics.get("val_loss", metrics["train_loss"])

    def card_notes(self, metrics: Mapping[str, float]) -> str:
        """Lines for the card of a checkpoint: what it was trained on, and how well."""
        scores = "".join(f"- {name}: {value:.4g}\n" for name, value in metrics.items())
        return f"- trained on {self.data.features.path}\n{scores}"

    def warm_start(self, folder: Path) -> str:
        """The flag that starts another run from a checkpoint's weights."""
        return f"--weights_dir {folder}"


def _size(what: str, data: CaptionDataset) -> str:
    images = data.features.count_images()
    cut = f", {data.truncated} cut to {data.max_tokens} tokens" if data.truncated else ""
    tokens = len(data.tokens) / len(data)
    return (
        f"{what} {counted(len(data), 'caption')} of {counted(images, 'image')} ({tokens:.1f} tokens on average{cut})"
    )
