"""Several processes of one run: starting as many as asked for, leaving them, and the error of one that was left."""

from __future__ import annotations

import os
import sys

LOST = (
    "another process of this run has ended: its message, or the system's log, states why; finished work is kept: "
    "start the same command again (a training with --resume)"
)


def leave() -> None:
    """End the threads that exchange tensors: one that holds a Python object when Python ends aborts the process."""
    distributed = sys.modules.get("torch.distributed")  # not imported here: it takes seconds
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def lost(error: Exception) -> bool:
    """Whether an error is that of a process whose partners are gone."""
    by_class = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return by_class or any(word in str(error) for word in ("gloo", "NCCL"))


def alone(processes: int) -> str | None:
    """The message for a run of one process whose launcher was asked for more."""
    if processes > 1 or not several_processes_asked_for():
        return None
    return (
        "the launcher was asked for several processes, but one is running; on CPU start them with "
        "`ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m clipcap …`"
    )


def several_processes_asked_for() -> bool:
    """Whether the environment shows that the launcher was asked for more than one process.

    On CPU `accelerate launch --num_processes 2` starts a single one, without a word (accelerate 1.15); all it leaves
    behind is the address for processes to meet at.
    """
    world = os.environ.get("WORLD_SIZE", "")
    return int(world) > 1 if world.isdigit() else "MASTER_ADDR" in os.environ
