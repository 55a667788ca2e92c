"""Worker processes that decode pictures, how many, and how they end with the command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from types import TracebackType
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from clipcap.errors import ClipcapError
from clipcap.images.interrupts import defer_interrupts
from clipcap.runtime.text import one_line

MOST = 8  # pictures decoded at once
_LOST = "DataLoader worker (pid"  # how torch begins what it raises


def at_once() -> int:
    """How many pictures are decoded at once: as many as cores, at most `MOST`."""
    return min(MOST, os.cpu_count() or 1)


def decoders(items: Dataset, workers: int | None, device: torch.device) -> Iterator[Any]:
    """The items of a dataset in turn, for a model on a device; the processes start at once.

    Ctrl-C ends them without a word where they are forked; where Python starts them anew, one that is still importing
    prints a traceback.

    Args:
        workers: processes that decode, at most one per item; 0: this one does. None: as many as cores, at most 8,
            but one where the model itself needs the cores.
    """
    if workers is None:
        workers = at_once() if device.type != "cpu" else 1
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


@contextmanager
def report_lost_workers(then: str = "") -> Iterator[None]:
    """Within, the death of a process of `decoders` is one line.

    It shows twice: the pipe to the process breaks, and a signal arrives at which torch raises wherever the main
    thread is then, be it while the first error is reported.

    Args:
        then: what the same command does when it is run again.
    Raises:
        ClipcapError: a process died.
    """
    try:
        try:
            yield
        except (RuntimeError, EOFError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and _LOST not in str(error):
                raise
            if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # nothing more to hear of it
            raise _lost(error, then) from error
    except RuntimeError as error:
        if _LOST not in str(error):
            raise
        raise _lost(error, then) from error


def _lost(error: Exception, then: str) -> ClipcapError:
    return ClipcapError(
        f"a process that decodes images died, for want of (shared) memory as a rule: run the same command with "
        f"--workers 0{then} ({one_line(error)})"
    )


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
