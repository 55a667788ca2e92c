"""The standard streams of a command, and what the system sends it: closed streams, files that shrink under it."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from typing import Any

_SHRUNK = (
    b"clipcap: error: a file became shorter while it was read (copied or written at the same time, or the drive is "
    b"gone): start again when it is whole\n"
)
_kept: list[Any] = []  # what C calls must not be collected


def ensure_streams() -> None:
    """Open what was closed before the start (`>&-`): the next file would take its number, and be written into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def report_shrunk_files() -> None:
    """End with one line where a mapped file is cut short by somebody else, in place of a bare `Bus error`.

    Python's own handlers run after the instruction that failed, which would fail again for ever; so C calls this one.
    If something else handles the signal, or the system has no such signal, nothing changes.
    """
    if not hasattr(signal, "SIGBUS") or faulthandler.is_enabled() or _kept:
        return
    if signal.getsignal(signal.SIGBUS) is not signal.SIG_DFL:
        return
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)
    _kept.append(handler)
    system = ctypes.CDLL(None).signal
    system.argtypes, system.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    system(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))


def _end(_number: int) -> None:
    os.write(2, _SHRUNK)
    os._exit(1)
