"""Which flags suit how many captions: one table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clipcap.fit.config import FitConfig

FEW_STEPS = 500  # below which a new mapper has learnt next to nothing


@dataclass(frozen=True)
class Recipe:
    """Flags of a training run, and why they were chosen."""

    epochs: int
    bs: int
    lr: float
    patience: int
    steps: int
    reasons: tuple[str, ...]

    @property
    def flags(self) -> list[str]:
        """As words of a command line."""
        chosen = {"epochs": self.epochs, "bs": self.bs, "lr": f"{self.lr:g}", "patience": self.patience}
        return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True)
class _Row:
    captions: float  # up to which the row holds
    bs: int
    lr: float
    steps: int  # of a new mapper, that the epochs are to make
    patience: int


# Rates are of a mapper before a frozen language model; a warm start takes a tenth, and a third of the steps.
_TABLE = (
    _Row(500, 8, 2e-3, 1500, 10),
    _Row(5_000, 16, 2e-3, 3000, 8),
    _Row(50_000, 40, 1e-3, 10_000, 4),
    _Row(math.inf, 40, 5e-4, 30_000, 3),
)
MOST_EPOCHS, FEWEST_EPOCHS = 100, 3


def choose_recipe(captions: int, config: FitConfig) -> Recipe:
    """The flags for a number of training captions; what the user gave stays as it is."""
    row = next(row for row in _TABLE if captions <= row.captions)
    warm = bool(config.weights_dir)
    bs = config.bs or row.bs
    per_epoch = math.ceil(captions / bs)
    wanted = row.steps // 3 if warm else row.steps
    epochs = config.epochs or min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(wanted / per_epoch)))
    lr = config.lr or (row.lr / 10 if warm else row.lr)
    start = "from a trained captioner: a small rate" if warm else "a new mapper needs a high rate and many steps"
    reasons = (
        f"--only_prefix: the language model stays as it is, which {captions:,} captions cannot improve"
        if captions <= 5_000 else "--only_prefix: the language model stays as it is, and a checkpoint small",
        f"--lr {lr:g}: {start}",
        f"--bs {bs} --epochs {epochs}: {per_epoch:,} steps an epoch, {per_epoch * epochs:,} in all",
        f"--patience {row.patience}: stops after so many epochs without a better one",
    )  # fmt: skip
    return Recipe(epochs, bs, lr, row.patience, per_epoch * epochs, reasons)


def too_short(recipe: Recipe, warm: bool) -> str:
    """A warning about a run from scratch that is too short to learn; empty where it is long enough."""
    if warm or recipe.steps >= FEW_STEPS:
        return ""
    return (
        f"{recipe.steps:,} steps from scratch are too few: the captions will be noise. What helps: --weights_dir "
        f"with a trained captioner, more photos, or a higher --epochs"
    )
