"""Several processes of one run: leaving them at the end, and the error of one that the others have left."""

from __future__ import annotations

import sys

LOST = (
    "another process of this run has ended: what it says, or the system's log, tells why; what was finished is kept: "
    "start the same command again (a training with --resume)"
)


def leave() -> None:
    """End the threads that exchange tensors: one that holds a Python object when Python ends aborts the process."""
    distributed = sys.modules.get("torch.distributed")  # not imported here: it takes seconds
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def lost(error: RuntimeError) -> bool:
    """Whether an error is that of a process whose partners are gone."""
    by_class = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return by_class or any(word in str(error) for word in ("gloo", "NCCL"))
