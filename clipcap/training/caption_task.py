"""Captioning, as the training loop sees it: batches, validation on held-out images, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import Caption, decode
from clipcap.features.feature_set import Features
from clipcap.models.base import IGNORE
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.checkpoint import load_state, read_weights, stored_state, write_checkpoint
from clipcap.models.given import Given
from clipcap.models.kernels.compile import compile_loss
from clipcap.models.language_model import max_positions
from clipcap.training.accelerator import sum_over_processes
from clipcap.training.config import CaptionerLoopConfig, CaptionerTaskConfig
from clipcap.training.dataset import Batch, prefetch
from clipcap.training.feature_task import FeatureTask
from clipcap.training.objective import CrossEntropy, Objective, Steps, step_number
from clipcap.training.optimizer import trained_parameters
from clipcap.training.prompting import DrawnPrompts
from clipcap.training.recipe import Start, choose_rates


class CaptionTask(FeatureTask[CaptionerTaskConfig, ClipCaptionModel]):
    """A captioner's training (`clipcap.training.task.Task`), of what any `FeatureTask` takes.

    Args:
        objective: what is learnt, made of the run's steps (default: cross-entropy).
        start: what the run starts from, which decides the rates that are not given (default: a new captioner).
    """

    def __init__(
        self,
        config: CaptionerTaskConfig,
        loop: CaptionerLoopConfig,
        model: ClipCaptionModel,
        tokenizer: Tokenizer,
        features: Features,
        val: Features | None,
        accelerator: Accelerator,
        objective: Callable[[Steps], Objective] = CrossEntropy,
        start: Start | None = None,
    ):
        self.rates = choose_rates(config, start or Start.of_model(model, warm=False), loop.recipe)
        self.recipe = loop.recipe
        reference = loop.recipe == "reference"
        share = config.share_prefix and not reference
        data = (tokenizer, features, val, accelerator)
        super().__init__(config, loop, model, *data, reference=reference, share_prefix=share)
        self.objective = objective(Steps(self.data, self.step_size, self.seed, self.parts))
        self.prompts: DrawnPrompts | None = None  # of the batches, where there are some
        if config.compile:
            compile_loss(model, accelerator.device)

    def caption_limit(self) -> int:
        """Longest caption in tokens, its end-of-text included."""
        room = max_positions(self.model.lm) - self.model.longest_prefix
        return min(room, self.config.max_tokens or room)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The mapper, and what is tuned of the language model."""
        return trained_parameters(self.model, self.rates.mapper, self.rates.lm)

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step."""
        windows = self.objective.windows(epoch, skip)
        if self.prompts is not None and self.objective.ahead:
            windows = self._prompted(windows, self.prompts, epoch, skip)
        return prefetch(windows) if self.objective.ahead else windows

    def _prompted(
        self, windows: Iterator[list[Batch]], prompts: DrawnPrompts, epoch: int, skip: int
    ) -> Iterator[list[Batch]]:
        """The windows with prompts drawn for each step."""
        for number, window in enumerate(windows, skip):
            yield [prompts.added(batch, step_number(self.objective, epoch, number)) for batch in window]

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.objective.steps_per_epoch()

    def describe(self) -> str:
        """What is trained on, and what is learnt, a line or two each."""
        rates = self.rates.describe(tuned=self.model.config.tune != "none")
        prompts = [self.prompts.prompting.note] if self.prompts else []
        return "\n".join([super().describe(), rates, *prompts, *self.objective.describe()])

    def report(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """As for any features, with the objective's own scores."""
        return {**super().report(captions, references), **self.objective.scores(captions, references, self.shown())}

    def weight(self, batch: Batch) -> int:
        """Label tokens of a micro-batch."""
        return int((batch.labels != IGNORE).sum())

    @torch.no_grad()
    def culprits(self, batch: Batch) -> list[str]:
        """Images of a batch whose own loss is not finite; none where that is so of all, though their features are."""
        inputs = batch.inputs(self.accelerator.device)
        rows, finite = range(len(batch.given)), batch.given.isfinite()
        bad = [r for r in rows if not self.model(**{k: v[r : r + 1] for k, v in inputs.items()}).isfinite()]
        bad_features = [r for r in bad if not finite[r]]
        ids = dict(zip(batch.row_of.tolist(), self.images(batch)))
        if bad_features:
            return [f"image {ids[r]} (its features are not finite)" for r in bad_features]
        return [f"image {ids[r]}" for r in bad] if len(bad) < len(rows) else []

    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the loop's options; places of files do not."""
        model = self.model.config
        own: dict[str, Any] = {"lr": self.rates.mapper}
        if self.rates.lm != self.rates.mapper:
            own["lm_lr"] = self.rates.lm
        own |= {"share_prefix": self.data.share_prefix, "num_heads": model.num_heads}
        if model.before or model.after:
            own["text around the image"] = f"{model.before} {model.after}"
        if self.prompts is not None:
            own |= self.prompts.prompting.identity()
        return {"recipe": self.recipe, **super().identity(), **own, **self.objective.identity()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Validation loss per token, and captions of held-out images: printed, counted, scored."""
        if self.val is None:
            return {}
        self.model.eval()
        loss = weight = 0.0
        for captions in self.val.validation_steps(self.step_size):
            for batch in self.val.window(captions, self.parts):
                loss += self.model(**batch.inputs(self.accelerator.device)).item()
                weight += self.weight(batch)
        loss, weight = sum_over_processes(self.accelerator, loss, weight)
        return {"val_loss": loss / max(weight, 1), **self.caption_held_out(recipe=self.recipe)}

    def decode(self, given: Given, how: DecodeConfig) -> list[list[Caption]]:
        """Captions of what is given of N images."""
        return decode(self.model, self.tokenizer, given, how)

    def write(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """The files of a native checkpoint."""
        write_checkpoint(self.model, self.tokenizer, folder, self.card_notes(metrics))

    def card_notes(self, metrics: Mapping[str, float]) -> str:
        """As for any features; where it reads retrieved captions, also of what."""
        config = self.model.config
        notes = super().card_notes(metrics)
        if config.datastore:
            notes += f"- reads captions of {config.datastore} (fingerprint {config.datastore_id})\n"
        return notes

    def checkpoint_bytes(self) -> int:
        """Bytes of the tensors of a checkpoint."""
        return sum(tensor.nbytes for tensor in stored_state(self.model).values())

    def restore(self, folder: Path) -> None:
        """Put a native checkpoint's weights into the model."""
        load_state(self.model, read_weights(folder), folder)
