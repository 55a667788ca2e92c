"""The default recipe of a captioner's run: rates, batch and epochs, by what is trained and from how many captions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig, Tune
from clipcap.options import Recipe
from clipcap.runtime.text import counted
from clipcap.training.config import CaptionerTaskConfig, TrainConfig

ORIGINAL = 2e-5  # of the original, for all that it trains
ORIGINAL_BATCH, ORIGINAL_EPOCHS = 40, 10
SMALL = 20e6  # parameters, below which a language model is small
DEEP = 0.3  # of an MLP's rate, for a transformer mapper of more than two layers
WARM = 0.1  # of the rates of a new mapper and adapter, where they are trained already
BATCHES = ((500, 8), (5_000, 16), (math.inf, 40))  # captions of a step, by those of the set
MOST_EPOCHS = 100
FEW_STEPS = 500  # below which a new mapper has learnt next to nothing


@dataclass(frozen=True)
class Row:
    """What suits a way of training."""

    mapper: float  # peak rate of a new MLP mapper
    lm: float  # of the language model, or its adapter
    epochs: int  # over many captions
    steps: int  # that a run is to have: more epochs over few captions


# By what is trained of the language model, and whether that is small.
TABLE: dict[tuple[Tune, bool], Row] = {
    ("none", False): Row(1e-3, 1e-3, epochs=8, steps=1500),
    ("none", True): Row(4e-3, 4e-3, epochs=4, steps=1500),
    ("lora", False): Row(1e-3, 1e-3, epochs=4, steps=1000),
    ("lora", True): Row(2e-3, 1e-3, epochs=4, steps=1500),
    ("full", False): Row(1e-3, 5e-5, epochs=4, steps=1000),
    ("full", True): Row(2e-3, 1e-3, epochs=4, steps=1500),
}


@dataclass(frozen=True)
class Start:
    """What a run starts from: all that the table asks for, besides the number of captions.

    Args:
        tune: what is trained of the language model.
        lm_size: its parameters.
        warm: the captioner was trained before.
        mapper: what kind it is of, in words.
        deep: it has more than two layers.
        lora_rank: of the adapter.
    """

    tune: Tune
    lm_size: int
    warm: bool
    mapper: str = "mlp"
    deep: bool = False
    lora_rank: int = ModelConfig.lora_rank

    @classmethod
    def of_model(cls, model: ClipCaptionModel, warm: bool) -> Start:
        """That of a captioner with its initial weights."""
        config, size = model.config, sum(parameter.numel() for parameter in model.lm.parameters())
        deep = config.mapping_type == "transformer" and config.num_layers > 2
        return cls(config.tune, size, warm, config.mapping_type, deep, config.lora_rank)

    @property
    def row(self) -> Row:
        """Of the table."""
        return TABLE[self.tune, self.lm_size < SMALL]


@dataclass(frozen=True)
class Rates:
    """Peak learning rates, and why they are these."""

    mapper: float
    lm: float
    reason: str

    def describe(self, tuned: bool) -> str:
        """A line for the start of a run, with the flags that override it."""
        if not tuned:
            return f"learning rate {self.mapper:g}: {self.reason} (--lr sets another)"
        if self.mapper == self.lm:
            return f"learning rate {self.mapper:g} for mapper and language model: {self.reason} (--lr, --lm_lr)"
        return (
            f"learning rates {self.mapper:g} for the mapper, {self.lm:g} for the language model: {self.reason} "
            f"(--lr and --lm_lr set others)"
        )


def choose_rates(config: CaptionerTaskConfig, start: Start, recipe: Recipe) -> Rates:
    """The rates of a run: those of the flags, else by what is trained.

    Args:
        config: with `lr` and `lm_lr` where they were given; `lr` alone is for all that is trained.
        start: what the run starts from.
        recipe: the original has one rate for everything.
    """
    if config.lr is not None:
        return Rates(config.lr, config.lr if config.lm_lr is None else config.lm_lr, "as given")
    chosen = Rates(ORIGINAL, ORIGINAL, "the original's") if recipe == "reference" else _of_table(start)
    if config.lm_lr is None:
        return chosen
    return replace(chosen, lm=config.lm_lr, reason=f"{chosen.reason}; the language model's as given")


def _of_table(start: Start) -> Rates:
    row, share = start.row, DEEP if start.deep else 1.0
    mapper = float(f"{row.mapper * share:g}")
    if start.warm:
        lm = min(ORIGINAL, row.lm) if start.tune == "full" else float(f"{row.lm * WARM:g}")
        return Rates(float(f"{mapper * WARM:g}"), lm, "low, as the weights are trained already")
    kind = f"a new {start.mapper} mapper"
    if start.tune == "none":
        return Rates(mapper, mapper, f"{kind}, the language model frozen")
    if start.tune == "lora":
        return Rates(mapper, row.lm, f"{kind}, LoRA of rank {start.lora_rank}")
    return Rates(mapper, row.lm, f"{kind}, a language model of {start.lm_size / 1e6:.0f} M tuned whole")


@dataclass(frozen=True)
class Length:
    """Captions of a step, epochs, and why."""

    bs: int
    epochs: int
    per_epoch: int
    reason: str

    @property
    def steps(self) -> int:
        """Of the run."""
        return self.per_epoch * self.epochs

    def describe(self, max_steps: int = 0) -> str:
        """A line for the start of a run, with the flags that override it."""
        end = f", of which --max_steps makes {max_steps:,}" if 0 < max_steps < self.steps else ""
        return (
            f"{counted(self.epochs, 'epoch')} of {counted(self.per_epoch, 'step')} of {counted(self.bs, 'caption')}, "
            f"{counted(self.steps, 'step')} in all{end}: {self.reason} (--epochs and --bs set others)"
        )


def choose_length(
    captions: int, start: Start, bs: int | None = None, epochs: int | None = None, parts: int = 1
) -> Length:
    """Batch and epochs of a run: as given, else so that a new mapper has steps enough and a large set a few passes.

    Args:
        captions: to train on.
        start: what the run starts from.
        bs, epochs: where they were given.
        parts: batches of an optimiser step, over processes and accumulation.
    """
    row = start.row
    size = bs or next(size for most, size in BATCHES if captions <= most)
    per_epoch = max(1, math.ceil(captions / (size * parts)))
    wanted, fewest = (row.steps // 3, max(1, row.epochs // 2)) if start.warm else (row.steps, row.epochs)
    passes = epochs or min(MOST_EPOCHS, max(fewest, math.ceil(wanted / per_epoch)))
    given = [flag for flag, value in (("--bs", bs), ("--epochs", epochs)) if value]
    why = f"{captions:,} captions" + (" and a captioner that is trained already" if start.warm else "")
    return Length(size, passes, per_epoch, f"for {why}" + (f"; {', '.join(given)} as given" if given else ""))


def too_short(steps: int, start: Start) -> str:
    """A warning about a run from scratch that is too short to learn; empty where it is long enough."""
    if start.warm or steps >= FEW_STEPS:
        return ""
    return (
        f"{counted(steps, 'step')} from scratch are too few: the captions will be noise. What helps: --weights_dir "
        f"with a trained captioner, more photos, or a higher --epochs"
    )


def with_length(
    config: TrainConfig, captions: int, start: Start, processes: int
) -> tuple[TrainConfig, Length | None]:
    """A run's options with batch and epochs, and both with their reason where they were chosen here.

    Args:
        config: where either may be None.
        captions: to train on.
        start: what the run starts from.
        processes: which each take a batch.
    """
    bs, epochs = config.task.bs, config.loop.epochs
    if bs is not None and epochs is not None:
        return config, None
    if config.loop.recipe == "reference" or config.learning.objective == "reward":
        return config.with_options(bs=bs or ORIGINAL_BATCH, epochs=epochs or ORIGINAL_EPOCHS), None
    chosen = choose_length(captions, start, bs, epochs, processes * config.loop.grad_accum)
    return config.with_options(bs=chosen.bs, epochs=chosen.epochs), chosen
