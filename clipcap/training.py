"""Train a captioner: features, model and validation put together for the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.checkpoint import WEIGHTS, load_checkpoint, load_state, write_checkpoint
from clipcap.config import DecodeConfig, ModelConfig, TrainConfig
from clipcap.dataset import IGNORE, Batch, CaptionDataset, Parts
from clipcap.decoding import decode
from clipcap.encoders import is_resnet
from clipcap.errors import ClipcapError
from clipcap.features import Features, check_same_encoder, read_features, split_by_image
from clipcap.lm import load_lm, load_tokenizer
from clipcap.loop import Loop, make_accelerator
from clipcap.metrics import cider, distinct_share
from clipcap.model import ClipCaptionModel, max_positions, parameter_report
from clipcap.text import tidy

COLLAPSE = 0.1  # share of distinct captions below which a model says the same of every image
SHOWN = 3  # held-out captions printed each epoch


def train(config: TrainConfig) -> Path:
    """Run a training.

    Returns:
        the folder of the `best` checkpoint.
    Raises:
        ClipcapError: bad data, options at odds, a loss that is not finite; what was saved stays.
    """
    accelerator = make_accelerator(config)
    features, val = open_features(config)
    for line in dict.fromkeys(f.encoder_note for f in (features, val) if f is not None):
        if line:
            accelerator.print(line)
    set_seed(config.seed)
    model, tokenizer, summary = initial_model(config, features)
    accelerator.print(f"{summary}\n{parameter_report(model)}")
    task = CaptionTask(config, model, tokenizer, features, val, accelerator)
    accelerator.print(task.describe())
    return Loop(task, config, accelerator, task.restore).fit()


def open_features(config: TrainConfig) -> tuple[Features, Features | None]:
    """The training and validation features that the options name, checked against each other."""
    features = read_features(config.data, encoder=config.clip_model_type)
    if config.is_rn and is_resnet(features.meta.encoder) is False:
        raise ClipcapError(f"--is_rn: {config.data} holds features of {features.meta.encoder}, which is no ResNet")
    if config.overfit:
        few = features.subset_by_row(features.caption_rows[: config.overfit])
        return few, few
    val = config.val or _sibling(config.data)
    if val is None:
        return features, None
    if _is_share(val):
        return split_by_image(features, float(val), config.seed)
    held_out = read_features(val, encoder=config.clip_model_type)
    check_same_encoder(
        held_out.meta, held_out.dim, features.meta.encoder, features.meta.encoder_weights_id, features.dim, val,
        f"the training features {config.data}",
    )  # fmt: skip
    return features, held_out


def _sibling(data: str) -> str | None:
    """The `*_val` file that parsing writes beside a `*_train` file."""
    path = Path(data)
    sibling = path.with_name(path.name.replace("_train", "_val"))
    return str(sibling) if sibling != path and sibling.exists() else None


def _is_share(text: str) -> bool:
    try:
        share = float(text)
    except ValueError:
        return False
    if not 0 < share < 1:
        raise ClipcapError(f"--val {text}: a share of the images lies between 0 and 1 (0.1)")
    return True


def initial_model(config: TrainConfig, features: Features) -> tuple[ClipCaptionModel, Tokenizer, str]:
    """A new model, or a warm start from --weights_dir."""
    if config.weights_dir:
        return _warm_start(config, features)
    model_config = ModelConfig(
        **{name: getattr(config, name) for name in _COPIED},
        clip_dim=features.dim,
        encoder=features.meta.encoder,
        encoder_weights_id=features.meta.encoder_weights_id,
        tune=config.tuning,
        stop_token="." if config.recipe == "reference" else None,
    )
    model = ClipCaptionModel(model_config, load_lm(config.lm))
    return model, load_tokenizer(config.lm), f"new {config.mapping_type} mapper before {config.lm}"


_COPIED = (
    "mapping_type", "prefix_length", "prefix_length_clip", "num_layers", "num_heads", "normalize_prefix", "lm",
    "lora_rank", "recipe",
)  # fmt: skip


def _warm_start(config: TrainConfig, features: Features) -> tuple[ClipCaptionModel, Tokenizer, str]:
    """Weights and sizes of a checkpoint; what is trained of them follows this run's options."""
    loaded = load_checkpoint(config.weights_dir, lm=None if config.lm == "gpt2" else config.lm)
    old = loaded.model.config
    guessed = features.meta.encoder_guessed or Path(loaded.path).is_file()
    check_same_encoder(
        features.meta, features.dim, None if guessed else old.encoder, old.encoder_weights_id, old.clip_dim,
        config.data, f"the checkpoint {loaded.path}",
    )  # fmt: skip
    if old.tune == "lora" and config.tuning != "lora":
        raise ClipcapError(
            f"--weights_dir {config.weights_dir} holds a LoRA adapter: go on with --tune lora, or merge it first by "
            f"`clipcap export`"
        )
    new = replace(
        old,
        normalize_prefix=old.normalize_prefix or config.normalize_prefix,
        encoder=features.meta.encoder,
        encoder_weights_id=features.meta.encoder_weights_id,
        tune=config.tuning,
        lora_rank=old.lora_rank if old.tune == "lora" else config.lora_rank,
        lm_stored=(old.lm_stored or old.tune == "full") and not _is_base(loaded.model, old.lm),
        stop_token="." if config.recipe == "reference" else None,
        recipe=config.recipe,
    )
    if old.tune == "lora":
        loaded.model.config = new
        model = loaded.model
    else:
        model = ClipCaptionModel(new, loaded.model.lm)
        model.mapper.load_state_dict(loaded.model.mapper.state_dict())
    return model, loaded.tokenizer, f"warm start from {loaded.summary}"


def _is_base(model: ClipCaptionModel, lm: str) -> bool:
    """Whether the model's language model has the very weights of `lm`, so that they need not be stored again."""
    try:
        base = load_lm(lm).state_dict()
    except ClipcapError:
        return False
    own = model.lm.state_dict()
    return own.keys() == base.keys() and all(torch.equal(own[k], base[k]) for k in own)


class CaptionTask:
    """Captioning, as the loop sees it."""

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
        room = max_positions(model.lm) - model.config.prefix_length
        limit = min(room, config.max_tokens or room)
        reference = config.recipe == "reference"
        self.data = CaptionDataset(features, tokenizer, limit, reference)
        self.val = CaptionDataset(val, tokenizer, limit, reference) if val is not None else None
        self.parts = Parts(accelerator.process_index, accelerator.num_processes, config.bs)
        self.step_size = config.bs * accelerator.num_processes * config.grad_accum
        self._steps = len(self.data.steps(self.step_size, 0, config.seed))

    def describe(self) -> str:
        """What is trained on, in one line or two."""
        lines = [_size("training on", self.data)]
        lines.append(_size("validating on", self.val) if self.val else "no validation: pass --val FILE or --val 0.1")
        lines.append(f"{self._steps} steps of {self.step_size} captions an epoch")
        return "\n".join(lines)

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self._steps

    def windows(self, epoch: int, skip: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per optimiser step."""
        return self.data.windows(self.step_size, epoch, self.config.seed, self.parts, skip)

    def weight(self, batch: Batch) -> Tensor:
        """Label tokens of a micro-batch."""
        return (batch.labels != IGNORE).sum()

    @torch.no_grad()
    def culprits(self, batch: Batch) -> str:
        """Images of a batch whose own loss is not finite."""
        bad = []
        for row, caption in enumerate(batch.captions):
            one = {name: tensor[row : row + 1] for name, tensor in batch.inputs(self.accelerator.device).items()}
            if not torch.isfinite(self.model(**one)):
                bad.append(self._name(int(caption)))
        return f"not finite for {', '.join(bad[:5])}" if bad and len(bad) < len(batch.captions) else ""

    def _name(self, caption: int) -> str:
        row = self.data.features.caption_rows[caption]
        return f"image {self.data.features.image_ids[row]}"

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Validation loss per token, and captions of held-out images: printed, counted, scored."""
        if self.val is None:
            return {}
        self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)  # loss, label tokens
        for captions in np.array_split(
            np.argsort(self.val.lengths, kind="stable"), -(-len(self.val) // self.step_size)
        ):
            mine = captions[self.parts.rank :: self.parts.world]
            for part in np.array_split(mine, -(-len(mine) // self.config.bs)) if len(mine) else []:
                batch = self.val.batch(part)
                loss = self.model(**batch.inputs(self.accelerator.device))
                totals += torch.stack([loss.double(), self.weight(batch).double().to(loss.device)])
        loss, tokens = self.accelerator.reduce(totals, "sum").tolist()
        return {"val_loss": loss / max(tokens, 1)} | self._caption_held_out()

    def _caption_held_out(self) -> dict[str, float]:
        """Caption some validation images greedily, this process its share of them."""
        features = self.val.features
        with_captions = np.unique(features.caption_rows)
        chosen = with_captions[:: max(1, len(with_captions) // max(1, self.config.val_captions))]
        chosen = chosen[: self.config.val_captions]
        if not len(chosen):
            return {}
        room = max_positions(self.model.lm) - self.model.config.prefix_length
        how = DecodeConfig(greedy=True, max_new_tokens=min(67, room), recipe=self.config.recipe)
        mine, found = chosen[self.parts.rank :: self.parts.world], []
        for rows in np.array_split(mine, -(-len(mine) // 64)) if len(mine) else []:
            embeddings = features.rows(rows).to(self.accelerator.device)
            found += [(int(r), c[0].text) for r, c in zip(rows, decode(self.model, self.tokenizer, embeddings, how))]
        captions = dict(sorted(_gather(found)))
        references = [features.captions_of(row) for row in captions]
        return self._report(list(captions.values()), references)

    def _report(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        for caption, wanted in list(zip(captions, references))[:SHOWN]:
            self.accelerator.print(f"  {tidy(caption)!r}  (human: {tidy(wanted[0])!r})")
        scores = {"distinct": distinct_share(captions)}
        if scores["distinct"] <= COLLAPSE and len(captions) >= 10:
            self.accelerator.print(
                f"warning: only {round(scores['distinct'] * len(captions))} different captions for {len(captions)} "
                f"images; the mapper does not use the image yet (more epochs, a higher --lr, or --tune full help)"
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
            if "cider" not in metrics:
                raise ClipcapError("--select cider needs validation images: pass --val, and --val_captions above 0")
            return -metrics["cider"]
        return metrics.get("val_loss", metrics["train_loss"])

    def write(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """The files of a native checkpoint."""
        scores = "".join(f"- {name}: {value:.4g}\n" for name, value in metrics.items())
        write_checkpoint(self.model, self.tokenizer, folder, f"- trained on {self.config.data}\n{scores}")

    def restore(self, folder: Path) -> None:
        """Put a native checkpoint's weights into the model."""
        load_state(self.model, load_file(folder / WEIGHTS), folder)


def _gather(found: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lists of all processes, one after the other."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return found
    lists: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(lists, found)
    return [item for part in lists for item in part]


def _size(what: str, data: CaptionDataset) -> str:
    images = len(np.unique(data.features.caption_rows))
    cut = f", {data.truncated} cut to {data.max_tokens} tokens" if data.truncated else ""
    return f"{what} {len(data)} captions of {images} images ({data.lengths.mean():.1f} tokens on average{cut})"
