"""The folder of a training run: its log and checkpoints, and no second run in their place."""

from __future__ import annotations

import re
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import CONFIG
from clipcap.runtime.files import folders_in
from clipcap.training.config import LoopConfig

LOG = "metrics.jsonl"
_CHECKPOINT = re.compile(r"(.+)-(?:last|best|\d{3,})")


def check_run_folder(options: LoopConfig) -> None:
    """Refuse a run that would replace another, before anything is written.

    A folder holds one run, whatever its prefix: there is one log. With `resume` a run begins anew where none has
    saved its `last`, as in an interrupted first epoch, which leaves `best` and one line of the log at most.

    Raises:
        ClipcapError: names what the folder holds and how to go on.
    """
    folder, last = Path(options.out_dir), f"{options.prefix}-last"
    if not folder.is_dir():
        if folder.exists():
            raise ClipcapError(f"--out_dir {folder}: is a file: choose another name for the folder")
        return
    checkpoints = folders_in(folder, lambda path: (path / CONFIG).is_file())
    names = {path.name: found[1] for path in checkpoints if (found := _CHECKPOINT.fullmatch(path.name))}
    epochs = (folder / LOG).read_bytes().count(b"\n") if (folder / LOG).is_file() else 0
    others = [name for name, prefix in names.items() if prefix != options.prefix]
    if others:
        raise ClipcapError(
            f"--out_dir {folder} holds a run of another --prefix ({shorten_list(others)}), and a folder has room for "
            f"one: choose another --out_dir"
        )
    there = shorten_list([*names, *[LOG] * bool(epochs)])
    if there and not options.resume:
        raise ClipcapError(
            f"--out_dir {folder} holds a run already ({there}): --resume to go on with it, or another --out_dir"
        )
    if there and last not in names and epochs != 1:
        raise ClipcapError(
            f"--resume: {folder} holds a run ({there}), but not the {last} to go on from: bring it back, or choose "
            f"another --out_dir"
        )


def checkpoint_path(options: LoopConfig, name: str | int) -> Path:
    """Checkpoint `prefix-last`, `prefix-best` or, of an epoch, `prefix-003`."""
    name = name if isinstance(name, str) else f"{name:03d}"
    return Path(options.out_dir) / f"{options.prefix}-{name}"


def numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """The numbered checkpoints of a run by their epoch, oldest first."""
    name = re.compile(re.escape(prefix) + r"-(\d{3,})")
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := name.fullmatch(path.name))]
    return dict(sorted(found))


def shorten_list(names: list[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
