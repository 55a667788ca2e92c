"""How long training and evaluation take on this machine, and what they need on disk, by a few steps and captions."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import clipcap.training.train  # noqa: F401  # the first import takes seconds, which are no part of a run's
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.runtime.messages import logger
from clipcap.training.config import FeatureTaskConfig
from clipcap.training.recipe import Length
from clipcap.training.step_log import STEPS

PROBE_STEPS = 12
SKIPPED = 4  # one in so many steps, the first ones: they are slower
CAPTIONED = 8  # images
CAPTION_TOKENS = 14  # of a caption, about; the model of a few steps does not end its own
GREEDY = 0.4  # time of a greedy caption, as a share of beam search's


@dataclass(frozen=True)
class Measured:
    """Seconds of the parts of a run, and its bytes on disk."""

    load: float
    step: float
    validation: float  # the loss of all held-out captions
    caption: float  # of one image, by beam search
    disk: int  # of the checkpoints

    def training(self, length: Length, held_out: int) -> float:
        """Seconds of a training run that is not stopped before its end."""
        shown = min(held_out, FeatureTaskConfig.val_captions) * self.caption * GREEDY
        return self.load + length.steps * self.step + length.epochs * (self.validation + shown)

    def evaluation(self, held_out: int) -> float:
        """Seconds until the held-out images are captioned."""
        return self.load + held_out * self.caption


def measure(training: Sequence[str], val: Path, probe: Path, command: Callable[[Sequence[str]], int]) -> Measured:
    """Train a few steps and caption a few images.

    Args:
        training: the command that trains, without its --out_dir.
        val: features held out.
        probe: folder for the checkpoints of the try; it is removed again.
        command: runs a `clipcap` command of these words; 0 is success.
    Raises:
        ClipcapError: the try failed.
    """
    shutil.rmtree(probe, ignore_errors=True)
    began, level = time.monotonic(), logger.level
    few = ("--max_steps", str(PROBE_STEPS), "--val_captions", "0", "--out_dir", str(probe))
    try:
        logger.setLevel("ERROR")  # the messages come with the run itself
        failed = command([*training, *few])
        whole = time.monotonic() - began
        if failed:
            raise ClipcapError("a try of a few steps failed, see above")
        began = time.monotonic()
        captioner = Captioner.from_pretrained(probe)
        load = time.monotonic() - began
        found = read_features(str(val))
        rows = list(found.rows(range(min(CAPTIONED, found.num_images))))  # N × [D]
        began = time.monotonic()
        captioner.caption(rows, DecodeConfig(max_new_tokens=CAPTION_TOKENS))
        caption = (time.monotonic() - began) / len(rows)
    finally:
        logger.setLevel(level)
    lines = [json.loads(line) for line in (probe / STEPS).read_text(encoding="utf-8").splitlines()]
    seconds = [1 / line["steps_per_s"] for line in lines]
    later = seconds[len(seconds) // SKIPPED :]
    disk = sum(path.stat().st_size for path in probe.rglob("*") if path.is_file())
    shutil.rmtree(probe, ignore_errors=True)
    validation = max(0.0, whole - sum(seconds) - load)
    return Measured(load, sum(later) / len(later), validation, caption, disk)
