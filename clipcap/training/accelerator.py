"""Starting accelerate: processes, mixed precision, trackers; and sums over all processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.runtime.messages import logger
from clipcap.runtime.processes import alone, lost
from clipcap.runtime.text import one_line
from clipcap.training.config import LoopConfig


def make_accelerator(options: LoopConfig, logged: Mapping[str, Any]) -> Accelerator:
    """Start accelerate and report how many processes there really are.

    Args:
        options: of the loop.
        logged: all options of the run by name, for the tracker.
    Raises:
        ClipcapError: the tracker is not installed or does not start.
    """
    tracker = None if options.tracker == "none" else options.tracker
    if tracker and tracker not in map(str, get_available_trackers()):  # of which accelerate only warns
        raise ClipcapError(f"--tracker {tracker}: {tracker} is not installed: pip install 'clipcap-toolkit[track]'")
    try:
        accelerator = Accelerator(
            log_with=tracker,
            project_dir=options.out_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        if lost(error):
            raise
        raise ClipcapError(_refused_environment(error)) from error
    processes = accelerator.num_processes
    logger.info(
        f"{processes} process{'es' * (processes > 1)} on {accelerator.device}, "
        f"mixed precision {accelerator.mixed_precision}"
    )
    if warning := alone(processes):
        logger.warning(warning)
    if tracker:
        _start_tracker(accelerator, tracker, logged)
    return accelerator


def _refused_environment(error: Exception) -> str:
    """Why accelerate does not start, and which variables ask for it."""
    asked = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("ACCELERATE_")]
    reason = one_line(error)
    if not asked:
        return f"accelerate does not start: {reason}"
    return (
        f"accelerate does not start as the environment asks ({', '.join(asked)[:300]}): {reason}; install what it "
        f"names, or unset the variable"
    )


def _start_tracker(accelerator: Accelerator, tracker: str, logged: Mapping[str, Any]) -> None:
    try:
        accelerator.init_trackers("clipcap", config=loggable(logged))
    except Exception as error:  # a tracker's own errors: no account, no network, no space
        raise ClipcapError(f"--tracker {tracker} does not start: {one_line(error)}") from error


def sum_over_processes(accelerator: Accelerator, *values: float) -> list[float]:
    """Each value, summed over all processes, which must all call this."""
    if accelerator.num_processes == 1:
        return list(values)
    return reduced(accelerator, torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()


def reduced(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """A tensor, summed over all processes, which must all call this."""
    return cast(Tensor, accelerator.reduce(tensor, "sum"))  # of a tensor accelerate makes a tensor


def loggable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What trackers take: numbers, booleans and text."""
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
