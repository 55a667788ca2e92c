"""Whether the checkpoints of an interrupted run are sound enough to go on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import CONFIG
from clipcap.training.run_folder import numbered


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
        mend = f"delete {best}, and the epochs to come make another" if epochs_left else f"use {last}"
        raise ClipcapError(f"--resume: the best checkpoint of this run is lost ({reason}): {mend}")
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
        json.loads((checkpoint / CONFIG).read_bytes())
    except ClipcapError as error:
        return str(error)
    except (OSError, ValueError):
        return f"{checkpoint / CONFIG}: missing or damaged"
    return ""
