"""The learning rates of a captioner's run, chosen by what is trained."""

from __future__ import annotations

from dataclasses import dataclass

from clipcap.models.caption_model import ClipCaptionModel
from clipcap.options import Recipe
from clipcap.training.config import CaptionerTaskConfig

ORIGINAL = 2e-5  # of the original, for all that it trains
MAPPER, DEEP_MAPPER = 1e-3, 3e-4  # from scratch: an MLP, a transformer of several layers
LORA = 1e-3
TUNED, TUNED_SMALL = 5e-5, 5e-4  # a whole language model, a small one
SMALL = 20e6  # parameters


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


def choose_rates(config: CaptionerTaskConfig, model: ClipCaptionModel, warm: bool, recipe: Recipe) -> Rates:
    """The rates of a run: those of the flags, else by what is trained.

    Args:
        config: with `lr` and `lm_lr` where they were given; `lr` alone is for all that is trained.
        model: with its initial weights.
        warm: it was trained before (--weights_dir).
        recipe: the original has one rate for everything.
    """
    if config.lr is not None:
        return Rates(config.lr, config.lr if config.lm_lr is None else config.lm_lr, "as given")
    chosen = _by_what_is_trained(model, warm, recipe)
    if config.lm_lr is None:
        return chosen
    return Rates(chosen.mapper, config.lm_lr, f"{chosen.reason}; the language model's as given")


def _by_what_is_trained(model: ClipCaptionModel, warm: bool, recipe: Recipe) -> Rates:
    if recipe == "reference":
        return Rates(ORIGINAL, ORIGINAL, "the original's")
    if warm:
        return Rates(ORIGINAL, ORIGINAL, "low, as the weights are trained already")
    deep = model.config.mapping_type == "transformer" and model.config.num_layers > 2
    mapper = DEEP_MAPPER if deep else MAPPER
    kind = f"a new {model.config.mapping_type} mapper"
    if model.config.tune == "none":
        return Rates(mapper, mapper, f"{kind}, the language model frozen")
    if model.config.tune == "lora":
        return Rates(mapper, LORA, f"{kind}, LoRA of rank {model.config.lora_rank}")
    size = sum(parameter.numel() for parameter in model.lm.parameters())
    small = size < SMALL
    return Rates(
        mapper, TUNED_SMALL if small else TUNED, f"{kind}, a language model of {size / 1e6:.0f} M tuned whole"
    )
