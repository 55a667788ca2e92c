"""Worker processes that decode pictures, how many, and how they end with the command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sized
from multiprocessing import AuthenticationError
from types import TracebackType
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from clipcap.images.interrupts import defer_interrupts


def decoders(items: Dataset, workers: int | None, device: torch.device) -> Iterator[Any]:
    """The items of a dataset in turn, for a model on a device; the processes start at once.

    Ctrl-C ends them without a word where they are forked; where Python starts them anew, one that is still importing
    prints a traceback.

    Args:
        workers: processes that decode, at most one per item; 0: this one does. None: as many as cores, at most 8,
            but one where the model itself needs the cores.
    """
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if device.type != "cpu" else 1
    workers = min(len(cast(Sized, items)), workers)
    loader = DataLoader(
        items,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_end_with_the_command,
    )
    with defer_interrupts():
        return iter(loader)


def _end_with_the_command(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal: the main one ends the others, which have nothing to say of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _unless_nobody_listens


def _unless_nobody_listens(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports an error, unless it is that the main process left while a tensor was handed over to it.

    The thread that hands them over (`multiprocessing.resource_sharer`) would print a traceback.
    """
    half_a_message = isinstance(error, OSError) and error.errno is None  # as multiprocessing calls it
    if not half_a_message and not isinstance(error, ConnectionError | EOFError | AuthenticationError):
        sys.__excepthook__(kind, error, trace)
