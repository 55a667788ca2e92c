"""The flags of the training that `clipcap fit` starts, of the default recipe's table, and why they are these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from clipcap.fit.config import FitConfig
from clipcap.models.config import Tune
from clipcap.training.config import CaptionerTaskConfig
from clipcap.training.recipe import SMALL, Length, Rates, Start, choose_length, choose_rates, too_short

ENOUGH_TO_TUNE = 5_000  # captions, from which on LoRA is worth its time
PATIENCE = ((500, 10), (5_000, 8), (50_000, 4))  # epochs without a better one, by captions
LEAST_PATIENCE = 3


@dataclass(frozen=True)
class Plan:
    """What a training run is to do, and why."""

    captions: int
    start: Start
    rates: Rates
    length: Length
    patience: int
    why_tune: str

    @property
    def flags(self) -> list[str]:
        """As words of a command line."""
        words = ["--tune", self.start.tune, "--epochs", str(self.length.epochs), "--bs", str(self.length.bs)]
        words += ["--lr", f"{self.rates.mapper:g}"]
        if self.rates.lm != self.rates.mapper:
            words += ["--lm_lr", f"{self.rates.lm:g}"]
        return [*words, "--patience", str(self.patience)]

    def reasons(self) -> Iterator[str]:
        """A line for each choice, with the flag that overrides it where there is one."""
        yield f"--tune {self.start.tune}: {self.why_tune}"
        yield self.rates.describe(tuned=self.start.tune != "none")
        yield f"--patience {self.patience}: stops after so many epochs without a better one"

    def too_short(self) -> str:
        """A warning about a run from scratch that is too short to learn; empty where it is long enough."""
        return too_short(self.length.steps, self.start)


def make_plan(captions: int, lm_size: int, config: FitConfig) -> Plan:
    """The training for a number of captions; what the user gave stays as it is.

    Args:
        captions: to train on.
        lm_size: parameters of the language model.
        config: of the whole run.
    """
    tune, why = _tuning(captions, lm_size, config)
    start = Start(tune, lm_size, warm=bool(config.weights_dir))
    rates = choose_rates(CaptionerTaskConfig(lr=config.lr), start, "default")
    length = choose_length(captions, start, config.bs, config.epochs)
    patience = next((epochs for most, epochs in PATIENCE if captions <= most), LEAST_PATIENCE)
    return Plan(captions, start, rates, length, patience, why)


def _tuning(captions: int, lm_size: int, config: FitConfig) -> tuple[Tune, str]:
    """What is trained of the language model, and why."""
    if config.tune is not None:
        return config.tune, "as given"
    if config.weights_dir:
        return "none", "the mapping network goes on, the language model stays as it is"
    if lm_size < SMALL:
        return "full", f"a language model of {lm_size / 1e6:.1f} M is small enough to be trained along"
    if captions < ENOUGH_TO_TUNE:
        return "none", f"the language model stays as it is: {captions:,} captions are too few to tune it"
    if find_spec("peft") is None:
        return "none", "the language model stays as it is; with pip install 'clipcap-toolkit[lora]' it learns along"
    return (
        "lora",
        f"an adapter in the language model, for which {captions:,} captions are enough (--tune none: faster)",
    )
