"""What a run takes on disk, computed before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from clipcap.runtime.text import byte_size
from clipcap.training.config import LoopConfig
from clipcap.training.task import Task

ADAM = 2  # moments of each trained number


def disk_needed(task: Task[Any], options: LoopConfig) -> tuple[int, str]:
    """Bytes of the checkpoints that a run holds at most, and a line about them.

    `last` has the optimizer's state, two numbers for each trained one; while it is replaced, there are two of it.
    """
    checkpoint = task.checkpoint_bytes()
    trained = sum(p.numel() * p.element_size() for p in task.model.parameters() if p.requires_grad)
    last = checkpoint + ADAM * trained
    numbered = options.numbered_checkpoints()
    total = checkpoint * (1 + numbered) + 2 * last
    count = f", {numbered:,} numbered" if numbered else ""
    sizes = f"{byte_size(checkpoint)} a checkpoint, the optimizer's state {byte_size(ADAM * trained)}"
    return total, f"disk: at most {byte_size(total)} in {options.out_dir} (best, last{count}; {sizes})"


def check_disk(needed: int, folder: Path) -> str:
    """A warning where the disk of `folder` has less room than is needed; else nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return ""
    return f"the disk has {byte_size(free)} free, the run needs {byte_size(needed)}: lower --keep, or free some"
