"""Contrastive training, as the loop sees it: batches, loss, validation, files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from clipcap.contrastive.config import ContrastiveConfig
from clipcap.contrastive.dataset import Crops, Extra, ImageTextBatch, ImageTextDataset, Pictures, Views
from clipcap.contrastive.image_cache import NO_IMAGE, ImageCache
from clipcap.contrastive.loss import ContrastiveModel
from clipcap.contrastive.towers.base import PARTS, Towers
from clipcap.contrastive.towers.openai import OpenAITowers
from clipcap.contrastive.validate import RecallValidation
from clipcap.errors import ClipcapError
from clipcap.images.skipped import too_many, write_errors
from clipcap.runtime.messages import logger
from clipcap.runtime.text import printable
from clipcap.sources.generated import refuse_generated
from clipcap.sources.record import Record
from clipcap.training.dataset import BatchShare

# Options that decide the weights, besides those of the loop and the model's own sizes.
_SAME_ON_RESUME = ("max_seq_length", "freeze", "head_lr", "image_lr", "text_lr", "bs", "crop", "flip", "frame")


class ContrastiveTask:
    """A dual encoder's training (`clipcap.training.task.Task`).

    Args:
        config: of the run.
        towers: the dual encoder, with its initial weights.
        records: of the source; those of its `train` split (or of none) are trained on, `val` is held out.
        accelerator: of the run.
        extra: further records to train on, `config.extra_share` of every batch.
    """

    hold_out = "--train_size 0.9"  # the flag that makes validation images

    def __init__(
        self,
        config: ContrastiveConfig,
        towers: Towers,
        records: Sequence[Record],
        accelerator: Accelerator,
        extra: Sequence[Record] = (),
    ):
        self.config, self.towers, self.accelerator = config, towers, accelerator
        train = [record for record in records if record.split in ("train", None)]
        val = [record for record in records if record.split == "val"]
        refuse_generated(record.image.path for record in val)
        train += extra
        if len(train) - len(extra) < 2:
            raise ClipcapError(
                f"{config.source.data_path}: contrast needs two captioned training images or more, here: "
                f"{len(train) - len(extra)}"
            )
        if config.bs * accelerator.num_processes < 2:
            raise ClipcapError("--bs 1 leaves no other image to compare with: set it to 2, or better many")
        pictures, views = self._training_pictures(train)
        mixed = Extra(len(extra), config.extra_share if extra else 0.0)
        self.pairs = ImageTextDataset(train, towers, pictures, views, config.loop.seed, mixed)
        if len(self.pairs.captions.tokens) < 2:
            raise ClipcapError(
                f"{config.source.data_path}: all captions are the same: there is nothing to tell images by"
            )
        self.held_out = RecallValidation(val, towers, self._held_out_pictures(val), accelerator, config.bs)
        self.parts = BatchShare(accelerator.process_index, accelerator.num_processes, config.bs)
        self.step_size = config.bs * accelerator.num_processes * config.loop.grad_accum
        self.model: ContrastiveModel = ContrastiveModel(towers, None if config.freeze == "none" else config.freeze)
        if accelerator.device.type == "cuda" and accelerator.num_processes > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # in place; torch has none for CPUs
        self.model.to(accelerator.device)
        self._told: set[str] = set()

    def _training_pictures(self, records: Sequence[Record]) -> tuple[Pictures, Views]:
        """Those of the records, and how training looks at them."""
        towers, config = self.towers, self.config
        crops = Crops(towers.resolution, config.crop, config.flip, towers.mean, towers.std)
        return self._cache(records, crops.side), crops

    def _held_out_pictures(self, records: Sequence[Record]) -> Pictures:
        """Those of the records, as large as the towers take them."""
        return self._cache(records, self.towers.resolution)

    def _cache(self, records: Sequence[Record], side: int) -> ImageCache:
        config = self.config
        return ImageCache(
            records, side, config.source.frame, config.source.workers, config.cache_mb, self.accelerator.device
        )

    def describe(self) -> str:
        """What is trained on what, in three lines."""
        towers = {part: self.towers.tower(part) for part in PARTS}
        sizes = ", ".join(f"{part} {_millions(own)}" for part, own in towers.items() if own)
        trained = _millions([p for p in self.model.parameters() if p.requires_grad])
        steps = self.steps_per_epoch()
        if len(self.held_out):
            chance = ", ".join(f"{name} {share:.4f}" for name, share in self.held_out.chance().items())
            validation = f"validating on {len(self.held_out)} images; by chance {chance}"
        else:
            validation = f"no validation images: hold some out with {self.hold_out}"
        return (
            f"{self.towers.looks_at}, {self.towers.max_tokens} tokens; {sizes}; {trained} trained\n"
            f"training on {self.pairs.real} images{self._extra_note()} "
            f"with {len(self.pairs.captions.keys)} captions, "
            f"{steps} step{'s' * (steps > 1)} of up to {self.step_size} images an epoch\n{validation}"
        )

    def _extra_note(self) -> str:
        extra = self.pairs.extra
        return f" and {extra.count} of {self.config.extra} ({extra.share:.0%} of every batch)" if extra.share else ""

    def decode(self) -> None:
        """Read the pictures that stay in memory."""
        for pictures in (self.pairs.pictures, self.held_out.pictures):
            pictures.fill(quiet=not self.accelerator.is_main_process)
        self._tell_bad()

    def _tell_bad(self) -> None:
        """Say once which pictures cannot be read; they are left out, and too many of them end the run."""
        both = (self.pairs.pictures, self.held_out.pictures)
        for pictures in both:
            pictures.bad.update(gather_object(list(pictures.bad.items())))
        found = {str(p.records[row].image): p.bad[row] for p in both for row in sorted(p.bad)}
        new = [path for path in found if path not in self._told]
        if not new:
            return
        self._told.update(new)
        errors, count = Path(self.config.loop.out_dir) / "errors.csv", sum(len(p.records) for p in both)
        if self.accelerator.is_main_process:
            errors.parent.mkdir(parents=True, exist_ok=True)
            write_errors(errors, list(found.items()))
        line = f"{len(found)} of {count} images cannot be read ({errors}), the first is {new[0]}: {found[new[0]]}"
        if too_many(len(found), count, self.config.source.max_bad):
            raise ClipcapError(f"{line}; more than --max_bad {self.config.source.max_bad}: fix them, or allow more")
        logger.warning(printable(line))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Head, image and text tower, each with its learning rate; weight decay is for matrices only."""
        groups = []
        for part, default in zip(PARTS, self.towers.rates, strict=True):
            rate = getattr(self.config, f"{part}_lr")
            rate = default if rate is None else rate
            trained = [p for p in self.towers.tower(part) if p.requires_grad]
            groups.append({"params": [p for p in trained if p.dim() > 1], "lr": rate})
            groups.append({"params": [p for p in trained if p.dim() <= 1], "lr": rate, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.pairs.count_steps(self.step_size)

    def windows(self, epoch: int, skip: int) -> Iterator[list[ImageTextBatch]]:
        """The micro-batches of this process, a list per optimiser step."""
        return self.pairs.windows(self.step_size, epoch, self.parts, skip)

    def weight(self, batch: ImageTextBatch) -> int:
        """Pairs of a micro-batch."""
        return int((batch.keys != NO_IMAGE).sum())

    def culprits(self, batch: ImageTextBatch) -> list[str]:
        """No image alone: each is compared with all."""
        return []

    def images(self, batch: ImageTextBatch) -> list[str]:
        """The id of each image."""
        records = self.pairs.pictures.records
        return [records[row].image_id for row in batch.rows.tolist() if row != NO_IMAGE]

    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the loop's options; places of files do not."""
        data = [(record.image_id, record.captions) for record in self.pairs.pictures.records]
        options = self.config.flat()
        sizes = [(name, tuple(tensor.shape)) for name, tensor in self.towers.network.state_dict().items()]
        extra = {"extra_share": self.pairs.extra.share} if self.pairs.extra.share else {}
        return {
            **extra,
            "images": len(self.pairs),
            "checksum of images and captions": zlib.crc32(repr(data).encode()),
            "checksum of the model's sizes": zlib.crc32(repr(sizes).encode()),
            **{name: options[name] for name in _SAME_ON_RESUME},
        }

    def validate(self) -> dict[str, float]:
        """Recall of the validation images and their captions among each other."""
        self.model.clamp()
        if dist.is_initialized():  # batch norms' running statistics differ; what is saved is the first process's
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        self.model.eval()
        scores = self.held_out.scores() if len(self.held_out) else {}
        if self.pairs.extra.share:
            scores = {**scores, "extra_share": self.pairs.extra.share}
        self._tell_bad()
        return scores

    def sheet(self) -> None:
        """Nothing is drawn."""
        return None

    def score(self, metrics: Mapping[str, float]) -> float:
        """What decides `best`, lower is better: mean recall@10 of both directions, or the training loss."""
        return -(metrics["i2t_r10"] + metrics["t2i_r10"]) / 2 if len(self.held_out) else metrics["train_loss"]

    def write(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """The files of an encoder."""
        self.towers.write(folder)

    def checkpoint_bytes(self) -> int:
        """Bytes of the tensors of a checkpoint."""
        return sum(tensor.nbytes for tensor in self.towers.network.state_dict().values())

    def restore(self, folder: Path) -> None:
        """Put a checkpoint's weights into the towers."""
        self.towers.restore(folder)

    def warm_start(self, folder: Path) -> str:
        """The flag that starts another run from a checkpoint's weights."""
        return f"--clip_model_type {'' if isinstance(self.towers, OpenAITowers) else 'hf:'}{folder}"


def _millions(parameters: Sequence[nn.Parameter]) -> str:
    return f"{sum(p.numel() for p in parameters) / 1e6:.2f} M"
