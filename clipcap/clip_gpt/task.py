"""CLIP-GPT's training, as the loop sees it: captioning's, and the way back from captions to embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import Caption
from clipcap.clip_gpt.checkpoint import restore_clip_gpt, stored_state, write_clip_gpt
from clipcap.clip_gpt.config import ClipGptTaskConfig
from clipcap.clip_gpt.dataset import PairDataset, TwoWayBatch
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.write import write_captions
from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics.recall import recall
from clipcap.evaluation.metrics.score import cider, cider_scorer
from clipcap.features.feature_set import Features
from clipcap.models.encoders.load import load_encoder
from clipcap.models.given import Given
from clipcap.models.language_model import max_positions
from clipcap.runtime.messages import logger
from clipcap.runtime.text import printable
from clipcap.training.accelerator import reduced, sum_over_processes
from clipcap.training.config import LoopConfig
from clipcap.training.dataset import CaptionDataset, prefetch
from clipcap.training.feature_task import FeatureTask

TEXTS_TOGETHER = 64  # captions that CLIP's text tower encodes at a time
RECALLS = ("t2i_r1", "t2i_r5", "t2i_r10")
# Options that decide the weights, besides those of any training on features.
_SAME_ON_RESUME = (
    "embedding_loss", "text_weight", "embedding_weight", "contrastive_temp", "projection_lr", "images_per_sequence",
)  # fmt: skip


class InterleavedTask(FeatureTask[ClipGptTaskConfig, ClipGPT]):
    """A CLIP-GPT's training (a `Task`), of what any `FeatureTask` takes; the tokenizer has the marks."""

    def __init__(
        self,
        config: ClipGptTaskConfig,
        loop: LoopConfig,
        model: ClipGPT,
        tokenizer: Tokenizer,
        features: Features,
        val: Features | None,
        accelerator: Accelerator,
    ):
        super().__init__(config, loop, model, tokenizer, features, val, accelerator)
        weights = config.text_weight, config.embedding_weight
        self.pairs = PairDataset(self.data, model.layout, *weights, config.images_per_sequence)
        self.val_pairs = PairDataset(self.val, model.layout, *weights) if self.val is not None else None
        if config.select == "recall" and val is None:
            raise ClipcapError("--select recall needs validation images: pass --val")
        self.with_cider = _with_cider()
        self.tower_recall = self._tower_recall(self.val) if config.clip_recall and self.val is not None else None

    def caption_limit(self) -> int:
        """Longest caption in tokens: so that as many as share a sequence fit into it."""
        many = self.config.images_per_sequence
        room = max_positions(self.model.lm) // many - self.model.layout.overhead
        if room < 2:
            raise ClipcapError(
                f"--images_per_sequence {many} leaves no room for captions: {self.model.config.lm} takes "
                f"{max_positions(self.model.lm)} positions"
            )
        return min(room, self.config.max_tokens or room)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The language model, or what is tuned of it; the marks' token embeddings; the projections."""
        model = self.model
        tokens = [] if model.config.tune == "full" else model.token_weights()  # decay would wear off the other rows
        projections = [*model.project_in.parameters(), *model.project_out.parameters()]
        apart = {id(parameter) for parameter in (*tokens, *projections)}
        rate = self.config.lr
        groups = [
            {"params": [p for p in model.parameters() if p.requires_grad and id(p) not in apart], "lr": rate},
            {"params": tokens, "lr": rate, "weight_decay": 0.0},
            {"params": projections, "lr": self.config.projection_lr},
        ]
        return [group for group in groups if group["params"]]

    def windows(self, epoch: int, skip: int) -> Iterator[list[TwoWayBatch]]:
        """The micro-batches of this process, a list per optimiser step."""
        return prefetch(self.pairs.windows(self.step_size, epoch, self.seed, self.parts, skip))

    def weight(self, batch: TwoWayBatch) -> int:
        """Captions of a micro-batch (see `Step`)."""
        return len(batch.captions) * batch.counts

    def culprits(self, batch: TwoWayBatch) -> list[str]:
        """Images of the step whose features are not finite."""
        features, numbers = self.data.features, batch.step.captions
        rows = np.unique(features.caption_rows[numbers])
        bad = rows[~features.rows(rows).isfinite().all(dim=1).numpy()]
        return [f"image {features.image_ids[row]} (its features are not finite)" for row in bad]

    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the loop's options; places of files do not."""
        own = {name: getattr(self.config, name) for name in _SAME_ON_RESUME}
        return {**super().identity(), **own, "clip_dim": self.model.config.clip_dim}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses on held-out captions, captions of held-out images, and recall of the predicted embeddings."""
        if self.val is None or self.val_pairs is None:
            return {}
        self.model.eval()
        order = np.argsort(self.val.lengths, kind="stable")
        predicted = torch.zeros(len(self.val), self.model.config.clip_dim, device=self.accelerator.device)  # [M, D]
        text = embedding = tokens = 0.0
        for captions in _even_parts(order, self.step_size):
            step = self.val_pairs.step(captions)
            mine = captions[self.parts.rank :: self.parts.world]
            for part in _even_parts(mine, self.config.bs):
                batch = self.val_pairs.batch(list(part[:, None]), step)
                with self.accelerator.autocast():
                    losses = self.model.losses(**batch.sequences.inputs(self.accelerator.device))
                text, embedding = text + losses[0].item(), embedding + losses[1].item()
                tokens += sum(map(self.val_pairs.label_tokens, part.tolist()))
                predicted[torch.from_numpy(batch.imagined).to(predicted.device)] = losses[2]
        text, embedding, tokens = sum_over_processes(self.accelerator, text, embedding, tokens)
        text, embedding = text / max(tokens, 1), embedding / len(self.val)
        loss = self.config.text_weight * text + self.config.embedding_weight * embedding
        scores = {"val_loss": loss, "val_text_loss": text, "val_embedding_loss": embedding}
        texts = reduced(self.accelerator, predicted).cpu()
        return {**scores, **self.caption_held_out(), **self._recall(texts, self.val)}

    def decode(self, given: Given, how: DecodeConfig) -> list[list[Caption]]:
        """Captions of what is given of N images."""
        return write_captions(self.model, self.tokenizer, given, how)

    def report(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """As of any task; scored wherever that is possible."""
        scores = super().report(captions, references)
        if self.with_cider and "cider" not in scores:
            scores["cider"] = cider(captions, references)
        return scores

    def _recall(self, texts: Tensor, val: CaptionDataset) -> dict[str, float]:
        """How often the held-out captions' embeddings [M, D] find their image; printed beside CLIP's own."""
        scores = self._text_to_image(texts, val)
        images = len(np.unique(val.features.row_images))
        chance = "/".join(f"{min(k, images) / images:.3f}" for k in (1, 5, 10))
        tower = f", CLIP's own text tower {_shares(self.tower_recall)}" if self.tower_recall else ""
        logger.info(
            f"  text to image recall@1/5/10 of {len(texts)} captions among {images} images: {_shares(scores)}{tower}"
            f", by chance {chance}"
        )
        return scores

    def _text_to_image(self, texts: Tensor, val: CaptionDataset) -> dict[str, float]:
        features = val.features
        _, first = np.unique(features.row_images, return_index=True)
        scores = recall(features.rows(first), texts, features.image_index)
        return {name: scores[name] for name in RECALLS}

    @torch.no_grad()
    def _tower_recall(self, val: CaptionDataset) -> dict[str, float] | None:
        """Recall of CLIP's own embeddings of the held-out captions; a note where its encoder is not at hand."""
        if not self.accelerator.is_main_process:
            return None
        features = val.features
        try:
            if features.meta.encoder is None or features.meta.encoder_guessed:
                raise ClipcapError(f"{features.path} does not say its encoder (name it by --clip_model_type)")
            encoder = load_encoder(features.meta.encoder, str(self.accelerator.device))
            if features.meta.encoder_weights_id not in (None, encoder.weights_id):
                raise ClipcapError(f"{encoder.name} has other weights than the features' encoder")
            captions = list(features.captions)
            parts = [captions[i : i + TEXTS_TOGETHER] for i in range(0, len(captions), TEXTS_TOGETHER)]
            return self._text_to_image(torch.cat([encoder.encode_texts(part).float().cpu() for part in parts]), val)
        except ClipcapError as error:
            logger.info(f"note: no comparison with CLIP's own text tower: {printable(str(error))}")
            return None

    def score(self, metrics: Mapping[str, float]) -> float:
        """What decides `best`, lower is better: recall, CIDEr, or the validation (else the training) loss."""
        if self.config.select == "recall":
            return -sum(metrics[name] for name in RECALLS)
        return super().score(metrics)

    def write(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """The files of a checkpoint."""
        write_clip_gpt(self.model, self.tokenizer, folder, self.card_notes(metrics))

    def checkpoint_bytes(self) -> int:
        """Bytes of the tensors of a checkpoint."""
        return sum(tensor.nbytes for tensor in stored_state(self.model).values())

    def restore(self, folder: Path) -> None:
        """Put a checkpoint's weights into the model."""
        restore_clip_gpt(self.model, folder)


def _even_parts(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """Parts of at most `size`; of nothing, none."""
    return np.array_split(numbers, -(-len(numbers) // size)) if len(numbers) else []


def _with_cider() -> bool:
    """Whether captions can be scored."""
    try:
        cider_scorer()
        return True
    except ClipcapError as error:
        logger.info(f"note: held-out captions are not scored: {error}")
        return False


def _shares(scores: Mapping[str, float]) -> str:
    return "/".join(f"{scores[name]:.3f}" for name in RECALLS)
