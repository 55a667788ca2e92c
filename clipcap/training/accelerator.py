"""Starting accelerate: processes, mixed precision, trackers; and sums over all processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs

from clipcap.errors import ClipcapError
from clipcap.options import LoopOptions
from clipcap.runtime.hub import one_line


def make_accelerator(options: LoopOptions) -> Accelerator:
    """Start accelerate and say how many processes there really are.

    Raises:
        ClipcapError: the tracker is not installed or does not start.
    """
    tracker = None if options.tracker == "none" else options.tracker
    if tracker and tracker not in map(str, get_available_trackers()):  # of which accelerate only warns
        raise ClipcapError(f"--tracker {tracker}: {tracker} is not installed: pip install 'clipcap[track]'")
    accelerator = Accelerator(
        log_with=tracker,
        project_dir=options.out_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    processes = accelerator.num_processes
    accelerator.print(
        f"{processes} process{'es' * (processes > 1)} on {accelerator.device}, "
        f"mixed precision {accelerator.mixed_precision}"
    )
    if warning := alone(processes):
        accelerator.print(warning)
    if tracker:
        _start_tracker(accelerator, tracker, options)
    return accelerator


def _start_tracker(accelerator: Accelerator, tracker: str, options: LoopOptions) -> None:
    try:
        accelerator.init_trackers("clipcap", config=loggable(vars(options)))
    except Exception as error:  # a tracker's own errors: no account, no network, no space
        raise ClipcapError(f"--tracker {tracker} does not start: {one_line(error)}") from error


def alone(processes: int) -> str | None:
    """What to say where one process runs and the launcher was told to start more."""
    if processes > 1 or not several_processes_asked_for():
        return None
    return (
        "warning: the launcher was asked for several processes, but one is running; on CPU start them with "
        "`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m clipcap …`"
    )


def several_processes_asked_for() -> bool:
    """Whether the launcher was told to start more than one process, as far as its environment tells.

    On CPU `accelerate launch --num_processes 2` starts a single one, without a word (accelerate 1.15); all it leaves
    behind is the address for processes to meet at.
    """
    world = os.environ.get("WORLD_SIZE", "")
    return int(world) > 1 if world.isdigit() else "MASTER_ADDR" in os.environ


def sum_over_processes(accelerator: Accelerator, *values: float) -> list[float]:
    """Each value, summed over all processes, which must all call this."""
    if accelerator.num_processes == 1:
        return list(values)
    return accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device), "sum").tolist()


def loggable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What trackers take: numbers, booleans and text."""
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
