"""Resume an interrupted run: load its state, and check its data, options and checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import CONFIG
from clipcap.runtime.files import recover
from clipcap.runtime.messages import logger
from clipcap.runtime.safe_load.torch_file import load_tensors
from clipcap.runtime.text import one_line
from clipcap.training.config import LoopConfig
from clipcap.training.run_folder import checkpoint_path, numbered
from clipcap.training.run_state import check_state
from clipcap.training.task import Task

STATE = "training_state.pt"
# What decides the weights; a resumed run must have the same. Places, trackers and what is kept may change.
_SAME_ON_RESUME = (
    "epochs", "grad_accum", "warmup_steps", "weight_decay", "grad_clip", "schedule", "seed",
)  # fmt: skip


@dataclass
class Progress:
    """How far a run is; stored with `last`."""

    epoch: int = 0
    step: int = 0  # optimiser steps in this epoch
    loss_sum: float = 0.0  # of this epoch so far
    loss_weight: float = 0.0
    best: float = math.inf
    stale: int = 0  # epochs since the best
    reductions: int = 0  # of the learning rate, with --schedule plateau
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of the finished epochs


@dataclass(frozen=True)
class RunState:
    """All of a run that `last` stores besides the weights."""

    identity: dict[str, Any]  # see `run_identity`
    progress: Progress
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None  # of mixed precision in float16


def run_identity(task: Task[Any], options: LoopConfig, accelerator: Accelerator) -> dict[str, Any]:
    """What decides the weights of a run, by name."""
    chosen = {name: getattr(options, name) for name in _SAME_ON_RESUME}
    chosen["max_steps"] = options.max_steps or None  # as in runs before there was the option
    launched = {"processes": accelerator.num_processes, "mixed precision": accelerator.mixed_precision}
    return {**chosen, **launched, **task.identity()}


def resume(
    task: Task[Any], options: LoopConfig, accelerator: Accelerator, identity: Mapping[str, Any]
) -> RunState | None:
    """Load `last`: its weights into the task's model, the rest as the result.

    Returns:
        None where the run has not saved a `last` yet, and starts from the beginning.
    Raises:
        ClipcapError: `last` is damaged, `identity` is not that of the run, or its other checkpoints are damaged.
    """
    last, best = checkpoint_path(options, "last"), checkpoint_path(options, "best")
    if accelerator.is_main_process:
        for path in (last, best):  # numbered ones of an interrupted epoch are written again
            recover(path)
    accelerator.wait_for_everyone()
    if not (last / CONFIG).is_file():
        nothing = f"no run in {options.out_dir} to go on with (no {last.name})"
        logger.warning(f"--resume: {nothing}; starting from the beginning")
        return None
    state = _load_state(last / STATE)
    _check_identity(state.identity, identity, options, task.warm_start(last))
    progress = state.progress
    if progress.best < math.inf and not check_best(best, last, task.restore, options.epochs - progress.epoch):
        progress.best = math.inf
    if progress.best < math.inf and not _same_measure(task, progress):
        logger.warning(
            "--resume: the epochs before were compared by another measure (--select); the best is of those to come"
        )
        progress.best = math.inf
    check_numbered(Path(options.out_dir), options.prefix, task.restore, progress.epoch)
    task.restore(last)
    logger.info(f"resumed from {last} at epoch {progress.epoch}, step {progress.step}")
    return state


def _load_state(path: Path) -> RunState:
    try:
        content = load_tensors(path)
        check_state(content, path)
        content["progress"] = Progress(**content["progress"])
        return RunState(**{f.name: content[f.name] for f in fields(RunState)})
    except ClipcapError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise ClipcapError(f"{path}: cannot resume from it: {one_line(error)[:160]}") from error


def _check_identity(was: Mapping[str, Any], now: Mapping[str, Any], options: LoopConfig, warm_start: str) -> None:
    """Refuse to go on with other data or options than the run has; `warm_start` is the flag for a new run."""
    for name in {**now, **was}:  # an option that is left out now counts as well
        value = now.get(name)
        if was.get(name) == value:
            continue
        advice = "give the same data and options, or start anew in another --out_dir"
        if name == "epochs" and value > was.get(name, value):  # the schedule has led to the end it knew of
            advice = f"to train on, begin another from its weights: {warm_start} --out_dir NEW"
        if name == "processes":
            advice = f"start {was.get(name)} again, or begin anew in another --out_dir"
        raise ClipcapError(
            f"--resume: the run in {options.out_dir} has {name} {was.get(name)}, this command {value}: {advice}"
        )


def _same_measure(task: Task[Any], progress: Progress) -> bool:
    """Whether what decides the best is what decided it before."""
    try:
        return progress.best in {task.score(metrics) for metrics in progress.history}
    except KeyError:
        return False


def check_best(best: Path, last: Path, restore: Callable[[Path], None], epochs_left: int) -> bool:
    """Whether a run to be resumed has its `best`; where that is gone, the epochs to come make another.

    Args:
        best, last: checkpoints of the run.
        restore: reads the weights of a checkpoint.
        epochs_left: that the run has still to train.
    Raises:
        ClipcapError: it is damaged, and must not pass for the run's result, or gone with no epoch left.
    """
    if epochs_left and not best.exists():
        return False
    if reason := _damage(best, restore):
        advice = f"delete {best}, and the epochs to come make another" if epochs_left else f"use {last}"
        raise ClipcapError(f"--resume: the best checkpoint of this run is lost ({reason}): {advice}")
    return True


def check_numbered(folder: Path, prefix: str, restore: Callable[[Path], None], epochs: int) -> None:
    """Refuse to go on beside damaged checkpoints of the first epochs: they would be found when they are needed.

    Raises:
        ClipcapError: names the first.
    """
    for epoch, path in numbered(folder, prefix).items():
        if epoch < epochs and (reason := _damage(path, restore)):
            raise ClipcapError(f"--resume: a checkpoint of this run is damaged ({reason}): delete {path}, and go on")


def _damage(checkpoint: Path, restore: Callable[[Path], None]) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        restore(checkpoint)
    except ClipcapError as error:
        return str(error)
    return damaged_json(checkpoint)


def damaged_json(checkpoint: Path) -> str:
    """Which description of a checkpoint cannot be read, its own or its tokenizer's; empty where all can."""
    for path in (checkpoint / CONFIG, *sorted(checkpoint.rglob("*.json"))):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return f"{path}: missing or damaged"
    return ""
