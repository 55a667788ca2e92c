"""Starting accelerate: processes, mixed precision, trackers; and sums over all processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, parse_flag_from_env
from PIL import Image
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.models.base import PrefixLM
from clipcap.models.kernels.attention import write_out_attention
from clipcap.models.kernels.bfloat16 import bfloat16_is_faster
from clipcap.models.kernels.frozen_bfloat16 import hold_frozen_in_bfloat16
from clipcap.models.kernels.switch import fast
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
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as `Accelerator` starts it
        precision = _mixed_precision(options.precision, state)
        _forget_other_precision(precision)
        accelerator = Accelerator(
            mixed_precision=precision,
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
        f"mixed precision {accelerator.mixed_precision}{_why(options.precision, precision)}"
    )
    if warning := alone(processes):
        logger.warning(warning)
    if tracker:
        _start_tracker(accelerator, tracker, logged)
    return accelerator


def _mixed_precision(choice: str, state: PartialState) -> str:
    """What accelerate is asked for, the same in all processes: what its launch states, else bf16 or no."""
    if (launched := os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()) != "no":
        return launched
    if choice == "float32":
        return "no"
    device = cast(torch.device, state.device)  # accelerate sets it as it starts
    if choice == "auto" and device.type == "cpu":
        found = broadcast_object_list([bfloat16_is_faster()]) if state.num_processes > 1 else [bfloat16_is_faster()]
        return "bf16" if found[0] else "no"
    if choice == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    return "bf16"


def _forget_other_precision(precision: str) -> None:
    """accelerate holds the precision of a process's first run for all that follow, and refuses another."""
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()


def _why(choice: str, precision: str) -> str:
    """Why --dtype auto took what it took."""
    if choice != "auto" or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() != "no":
        return ""
    faster = "faster here than float32" if precision == "bf16" else "bfloat16 is no faster here"
    return f" (--dtype auto: {faster})"


def multiply_in_bfloat16(model: PrefixLM, accelerator: Accelerator) -> None:
    """Let a model do on a CPU what mixed precision in bfloat16 needs to be fast; other runs stay as they are."""
    if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu" and fast():
        hold_frozen_in_bfloat16(model)
        write_out_attention(model.lm)


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
    """Start a tracker with the options of the run; TensorBoard gets them as a text, in the run's own folder."""
    options = loggable(logged)
    try:
        if tracker != "tensorboard":
            accelerator.init_trackers("clipcap", config=options)
            return
        accelerator.init_trackers("clipcap")  # whose own record of options would open two runs beside this one
        if accelerator.is_main_process:
            table = "".join(f"| {name} | {value} |\n" for name, value in options.items())
            writer: Any = accelerator.get_tracker("tensorboard", unwrap=True)
            writer.add_text("options", f"| option | value |\n|-|-|\n{table}")
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


def log_picture(accelerator: Accelerator, name: str, picture: Image.Image | None, step: int) -> None:
    """Show a picture in the run's tracker, where there is one."""
    if picture is None:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: np.asarray(picture)[None]}, step, dataformats="NHWC")  # [1, H, W, 3]
        else:
            tracker.log_images({name: [picture]}, step)


def loggable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What trackers take: numbers, booleans and text."""
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
