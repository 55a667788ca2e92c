"""Options of `clipcap fit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, at_least, option


@dataclass(frozen=True)
class FitConfig(Options, group="training"):
    """A captioner of one's own photos, in one command. What is not given follows from the number of captions."""

    out: str = option("", "folder for everything: features, checkpoints, evaluation", group="output")
    clip_model_type: str = option("ViT-B/32", "frozen encoder, as of `clipcap parse`", group="model")
    lm: str | None = option(
        None, "language model (default: gpt2; with --weights_dir the checkpoint's)", group="model"
    )
    weights_dir: str | None = option(None, "start from this captioner instead of a new mapper", group="model")
    tune: Literal["none", "lora", "full"] | None = option(
        None, "what to train of the language model (default: by its size and the number of captions)", group="model"
    )
    epochs: int | None = option(None, "passes over the data (default: by the number of captions)")
    bs: int | None = option(None, "captions per batch (default: by the number of captions)", aliases=("batch_size",))
    lr: float | None = option(None, "peak learning rate (default: by the number of captions and what is trained)")
    java: bool = option(True, "use Java for scores where it is found", group="output")
    dry_run: bool = option(False, "print the plan, with the time measured in a few steps, and train nothing")
    seed: int = option(42, "seed of split, weights and order")

    def __post_init__(self) -> None:
        if not self.out:
            raise ClipcapError("--out is missing: the folder for features, checkpoints and evaluation")
        for name in ("epochs", "bs"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
