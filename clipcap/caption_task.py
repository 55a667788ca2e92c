"""Captioning, as the training loop sees it: batches, validation on held-out images, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.checkpoint import load_state, read_weights, write_checkpoint
from clipcap.compiling import compile_loss
from clipcap.config import DecodeConfig
from clipcap.dataset import IGNORE, Batch, CaptionDataset, Parts, made_ahead
from clipcap.decoding import Caption, decode
from clipcap.errors import ClipcapError
from clipcap.features import Features
from clipcap.launch import sum_over_processes
from clipcap.metrics import cider, cider_scorer, distinct_share
from clipcap.model import ClipCaptionModel, checkpoint_layers, max_positions
from clipcap.optimiser import trained_parameters
from clipcap.shared_prefix import can_share_prefix
from clipcap.text import collapsed, in_short, tidy
from clipcap.train_config import TrainConfig

SHOWN = 3  # held-out captions printed each epoch
DECODED_TOGETHER = 64
LONGEST_SHOWN = 67  # tokens of a held-out caption, as in the original's decoding


class CaptionTask:
    """A captioner's training (`clipcap.task.Task`).

    Args:
        config: of the run.
        model: with its initial weights.
        tokenizer: of its language model.
        features: to train on.
        val: held out, or None.
        accelerator: of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ClipCaptionModel,
        tokenizer: Tokenizer,
        features: Features,
        val: Features | None,
        accelerator: Accelerator,
    ):
        self.config, self.model, self.tokenizer, self.accelerator = config, model, tokenizer, accelerator
        self.model.lm_dropout = config.dropout
        if config.gradient_checkpointing:
            checkpoint_layers(model.lm)
        if config.compile:
            compile_loss(model, accelerator.device)
        limit = self.caption_limit()
        reference = config.recipe == "reference"
        share = config.share_prefix and not reference
        shares = share and can_share_prefix(model.lm)
        recipe = (tokenizer, limit, reference, shares, accelerator.print)
        self.data = CaptionDataset(features, *recipe)
        self.val = CaptionDataset(val, *recipe) if val is not None else None
        self._unable_to_share = share and not shares
        self.parts = Parts(accelerator.process_index, accelerator.num_processes, config.bs)
        self.step_size = config.bs * accelerator.num_processes * config.grad_accum
        self._steps = self.data.count_steps(self.step_size)
        self._shown = self._images_to_caption()
        if config.select == "cider":
            cider_scorer()  # where its package is missing, that is said now and not after an epoch
            if not self._shown:
                raise ClipcapError("--select cider needs validation images: pass --val, and --val_captions above 0")

    def caption_limit(self) -> int:
        """Longest caption in tokens, its end-of-text included."""
        room = max_positions(self.model.lm) - self.model.config.prefix_length
        return min(room, self.config.max_tokens or room)

    def describe(self) -> str:
        """What is trained on, in one line or two."""
        lines = [_size("training on", self.data)]
        lines.append(_size("validating on", self.val) if self.val else "no validation: pass --val FILE or --val 0.1")
        steps = f"{self._steps} step{'s' * (self._steps > 1)} of {self.step_size} captions an epoch"
        lines.append(f"{steps}; captions of an image share its prefix" if self.data.shares else steps)
        if self._unable_to_share:
            kind = self.model.lm.config.model_type
            lines.append(f"{kind} models cannot compute a prefix once for several captions: it is done for each")
        return "\n".join(lines)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The mapper, and what is tuned of the language model."""
        return trained_parameters(self.model)

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self._steps

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step."""
        return made_ahead(self.data.windows(self.step_size, epoch, self.config.seed, self.parts, skip))

    def weight(self, batch: Batch) -> int:
        """Label tokens of a micro-batch."""
        return int((batch.labels != IGNORE).sum())

    @torch.no_grad()
    def culprits(self, batch: Batch) -> list[str]:
        """Images of a batch whose own loss is not finite; none where that is so of all, though their features are."""
        inputs = batch.inputs(self.accelerator.device)
        rows = range(len(batch.clip_embedding))
        bad = [r for r in rows if not self.model(**{k: v[r : r + 1] for k, v in inputs.items()}).isfinite()]
        bad_features = [r for r in bad if not batch.clip_embedding[r].isfinite().all()]
        ids = dict(zip(batch.row_of.tolist(), self.images(batch)))
        if bad_features:
            return [f"image {ids[r]} (its features are not finite)" for r in bad_features]
        return [f"image {ids[r]}" for r in bad] if len(bad) < len(rows) else []

    def images(self, batch: Batch) -> list[str]:
        """The id of each caption's image."""
        features = self.data.features
        return [features.image_ids[features.caption_rows[number]] for number in batch.captions]

    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the loop's options; places of files do not."""
        options = ("bs", "max_tokens", "dropout", "overfit")
        model = ("tune", "lora_rank", "normalize_prefix", "num_heads")
        return {
            "captions": len(self.data),
            "label tokens": len(self.data.tokens),
            "checksum of the captions": self.data.checksum(),
            **{name: getattr(self.config, name) for name in options},
            "share_prefix": self.data.share_prefix,
            **{name: getattr(self.model.config, name) for name in model},
        }

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
        return {"val_loss": loss / max(weight, 1), **self._caption_held_out()}

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
            of_image = [features.captions[int(i)] for i in np.flatnonzero(image_of_caption == image)]
            shown.append((int(features.caption_rows[caption]), of_image))
        return shown

    def _caption_held_out(self) -> dict[str, float]:
        """Caption the chosen validation images greedily, this process its share of them."""
        if not self._shown:
            return {}
        rows = np.array([row for row, _ in self._shown])
        room = max_positions(self.model.lm) - self.model.config.prefix_length
        how = DecodeConfig(greedy=True, max_new_tokens=min(LONGEST_SHOWN, room), recipe=self.config.recipe)
        found = []
        for part in _split(np.arange(len(rows))[self.parts.rank :: self.parts.world], DECODED_TOGETHER):
            embeddings = self.val.features.rows(rows[part]).to(self.accelerator.device)
            captions = self.decode(embeddings, how)
            found += [(int(number), several[0].text) for number, several in zip(part, captions)]
        captions = [text for _, text in sorted(gather_object(found))]
        return self._report(captions, [wanted for _, wanted in self._shown])

    def decode(self, clip_embedding: Tensor, how: DecodeConfig) -> list[list[Caption]]:
        """Captions of CLIP embeddings [N, D]."""
        return decode(self.model, self.tokenizer, clip_embedding, how)

    def _report(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Print the first captions and a warning where they are all alike; score them."""
        for caption, wanted in list(zip(captions, references))[:SHOWN]:
            self.accelerator.print(f"  {in_short(tidy(caption))!r}  (human: {in_short(tidy(wanted[0]))!r})")
        scores = {"distinct": distinct_share(captions)}
        if different := collapsed(captions):
            mend = "more epochs or a higher --lr help" + ", or --tune full" * (self.model.config.tune != "full")
            self.accelerator.print(
                f"warning: only {different} different caption{'s' * (different > 1)} for {len(captions)} images; the "
                f"model does not use the image yet ({mend})"
            )
        if self.config.overfit:
            exact = [tidy(c) in {tidy(w) for w in wanted} for c, wanted in zip(captions, references)]
            scores["reproduced"] = sum(exact) / len(exact)
        if self.config.select == "cider":
            scores["cider"] = cider(captions, references)
        return scores

    def score(self, metrics: Mapping[str, float]) -> float:
        """What decides `best`, lower is better: CIDEr, or the validation (else the training) loss."""
        if self.config.select == "cider":
            return -metrics["cider"]
        return metrics.get("val_loss", metrics["train_loss"])

    def write(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """The files of a native checkpoint."""
        scores = "".join(f"- {name}: {value:.4g}\n" for name, value in metrics.items())
        write_checkpoint(self.model, self.tokenizer, folder, f"- trained on {self.config.data}\n{scores}")

    def warm_start(self, folder: Path) -> str:
        """The flag that starts another run from a checkpoint's weights."""
        return f"--weights_dir {folder}"

    def restore(self, folder: Path) -> None:
        """Put a native checkpoint's weights into the model."""
        load_state(self.model, read_weights(folder), folder)


def _split(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """Even parts of at most `size`."""
    return np.array_split(numbers, -(-len(numbers) // size)) if len(numbers) else []


def _size(what: str, data: CaptionDataset) -> str:
    images = data.features.count_images()
    cut = f", {data.truncated} cut to {data.max_tokens} tokens" if data.truncated else ""
    tokens = len(data.tokens) / len(data)
    return f"{what} {len(data)} captions of {images} images ({tokens:.1f} tokens on average{cut})"
