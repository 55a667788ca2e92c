"""How long training and evaluation take on this machine, and what they need on disk, by a few steps and captions."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import clipcap.training.train  # noqa: F401  # the first import takes seconds, which are no part of a run's
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.models.kernels.shared_prefix import can_share_prefix
from clipcap.runtime.messages import logger
from clipcap.training.batch_order import BatchOrder
from clipcap.training.config import FeatureTaskConfig
from clipcap.training.step_log import STEPS

PROBE_STEPS = 12
SKIPPED = 4  # one in so many steps, the first ones: they are slower
ENOUGH_S = 3.0  # of steps; more are tried where the first ones were faster
MOST_STEPS = 100
CAPTIONED = 16  # images, a batch of the evaluation
GREEDY = 0.4  # time of a greedy caption, as a share of beam search's
JAVA_S, SCORE_S = 12.0, 0.005  # scores: until METEOR is ready, and an image


@dataclass(frozen=True)
class Measured:
    """Seconds of the parts of a run, and its bytes on disk."""

    load: float
    step: float
    validation: float  # the loss of all held-out captions, and the checkpoints of an epoch
    caption: float  # of one image, by beam search
    per_epoch: int  # steps
    disk: int  # of the checkpoints

    def training(self, epochs: int, held_out: int) -> float:
        """Seconds of a training run of so many epochs."""
        shown = min(held_out, FeatureTaskConfig.val_captions) * self.caption * GREEDY
        return self.load + epochs * (self.per_epoch * self.step + self.validation + shown)

    def captioning(self, held_out: int) -> float:
        """Seconds until the held-out images are captioned."""
        return self.load + held_out * self.caption

    def scoring(self, held_out: int, java: bool) -> float:
        """Seconds until their captions are scored."""
        return java * JAVA_S + held_out * SCORE_S


def measure(
    training: Sequence[str], bs: int, train: Path, val: Path, probe: Path,
    command: Callable[[Sequence[str]], int],
) -> Measured:  # fmt: skip
    """Train a few steps and caption a few images.

    Args:
        training: the command that trains, without its --out_dir.
        bs: captions of its steps.
        train, val: the features that it reads.
        probe: folder for the checkpoints of the try; it is removed again.
        command: runs a `clipcap` command of these words; 0 is success.
    Raises:
        ClipcapError: the try failed.
    """
    try:
        with _silence():
            whole, seconds = _tried(training, PROBE_STEPS, probe, command)
            began = time.monotonic()
            captioner = Captioner.from_pretrained(probe)
            load = time.monotonic() - began
            caption = _seconds_of_a_caption(captioner, val)
            per_epoch = _steps_per_epoch(captioner, train, bs)
            more = min(MOST_STEPS, int(ENOUGH_S / _usual(seconds)), per_epoch)
            if more > 2 * PROBE_STEPS:
                whole, seconds = _tried(training, more, probe, command)
        disk = sum(path.stat().st_size for path in probe.rglob("*") if path.is_file())
        return Measured(load, _usual(seconds), max(0.0, whole - sum(seconds) - load), caption, per_epoch, disk)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _steps_per_epoch(captioner: Captioner, train: Path, bs: int) -> int:
    features = read_features(str(train))
    shares = can_share_prefix(captioner.model.lm)
    return BatchOrder(np.arange(len(features.captions) + 1), features if shares else None).count_bucketed(bs)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Messages and results of the tries are those of the run, and come with it."""
    level = logger.level
    logger.setLevel("ERROR")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _tried(
    training: Sequence[str], steps: int, probe: Path, command: Callable[[Sequence[str]], int]
) -> tuple[float, list[float]]:
    """Seconds of a run of a few steps, and of each step."""
    shutil.rmtree(probe, ignore_errors=True)
    began = time.monotonic()
    if command([*training, "--max_steps", str(steps), "--val_captions", "0", "--out_dir", str(probe)]):
        raise ClipcapError("a try of a few steps failed, see above")
    whole = time.monotonic() - began
    lines = [json.loads(line) for line in (probe / STEPS).read_text(encoding="utf-8").splitlines()]
    return whole, [1 / line["steps_per_s"] for line in lines]


def _usual(seconds: Sequence[float]) -> float:
    """The mean of all but the first steps."""
    later = seconds[len(seconds) // SKIPPED :]
    return sum(later) / len(later)


def _seconds_of_a_caption(captioner: Captioner, val: Path) -> float:
    """Of one image, as evaluation captions it; captions are as long as the human ones."""
    found = read_features(str(val))
    rows = list(found.rows(range(min(CAPTIONED, found.num_images))))  # N × [D]
    texts = [text for several in found.captions_by_row(0, len(rows)) for text in several]
    lengths = [len(captioner.tokenizer(text)["input_ids"]) for text in texts]
    how = DecodeConfig(max_new_tokens=max(1, round(sum(lengths) / max(1, len(lengths))) + 1))
    began = time.monotonic()
    captioner.caption(rows, how)
    return (time.monotonic() - began) / len(rows)
