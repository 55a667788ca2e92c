"""The folder of a training run: its log and checkpoints, and no second run in their place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import CONFIG
from clipcap.options import LoopOptions
from clipcap.runtime.files import folders_in

LOG = "metrics.jsonl"
_CHECKPOINT = re.compile(r"(.+)-(?:last|best|\d{3,})")


def check_run_folder(options: LoopOptions) -> None:
    """Refuse a run that would replace another, before anything is written.

    A folder holds one run, whatever its prefix: there is one log. With `resume` a run begins anew where none has
    saved its `last`, as in an interrupted first epoch, which leaves `best` and one line of the log at most.

    Raises:
        ClipcapError: says what is there and how to go on.
    """
    folder, last = Path(options.out_dir), f"{options.prefix}-last"
    if not folder.is_dir():
        if folder.exists():
            raise ClipcapError(f"--out_dir {folder}: is a file: choose another name for the folder")
        return
    checkpoints = folders_in(folder, lambda path: (path / CONFIG).is_file())
    names = [path.name for path in checkpoints if _CHECKPOINT.fullmatch(path.name)]
    epochs = (folder / LOG).read_bytes().count(b"\n") if (folder / LOG).is_file() else 0
    others = [name for name in names if _CHECKPOINT.fullmatch(name)[1] != options.prefix]
    if others:
        raise ClipcapError(
            f"--out_dir {folder} holds a run of another --prefix ({some(others)}), and a folder has room for one: "
            f"choose another --out_dir"
        )
    there = some([*names, *[LOG] * bool(epochs)])
    if there and not options.resume:
        raise ClipcapError(
            f"--out_dir {folder} holds a run already ({there}): --resume to go on with it, or another --out_dir"
        )
    if there and last not in names and epochs != 1:
        raise ClipcapError(
            f"--resume: {folder} holds a run ({there}), but not the {last} to go on from: bring it back, or choose "
            f"another --out_dir"
        )


def numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """The numbered checkpoints of a run by their epoch, oldest first."""
    name = re.compile(re.escape(prefix) + r"-(\d{3,})")
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := name.fullmatch(path.name))]
    return dict(sorted(found))


def some(names: list[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
