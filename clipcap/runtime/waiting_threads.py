"""How torch's threads wait for each other: on a busy machine by sleeping, so that it does not slow them down."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

# A sleeping thread wakes in some microseconds; so GNU's threads spin shortly before they sleep, as they do by
# themselves where there are more of them than cores. Intel's and LLVM's know the first variable alone.
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
OTHERS = ("KMP_BLOCKTIME", "KMP_LIBRARY")  # that decide the same
BUSY = 0.5  # processes at work on average over the last minute: one contended core holds all threads back


def let_threads_sleep(environment: MutableMapping[str, str] = os.environ, load: float | None = None) -> None:
    """Let torch's OpenMP threads sleep while they wait, on a busy machine whose user does not say how they wait.

    By default they spin for milliseconds at the end of each operation. Where another program needs one of the cores,
    a spinning thread holds back the one that it waits for: training and decoding take up to ten times as long. On an
    idle machine spinning is faster by a tenth.

    Args:
        environment: changed in place; OpenMP reads it when torch is imported, so that it is too late afterwards.
        load: processes at work (default: the machine's average over the last minute, where it is known).
    """
    if "torch" in sys.modules or any(name in environment for name in (*SLEEPING, *OTHERS)):
        return
    if (_load() if load is None else load) >= BUSY:
        environment.update(SLEEPING)


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows does not count it
        return 0.0
