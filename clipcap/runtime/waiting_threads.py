"""How torch's threads wait for each other: by sleeping, so that a busy machine does not slow them down."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

# A sleeping thread wakes in some microseconds; so GNU's threads spin shortly before they sleep, as they do by
# themselves where there are more of them than cores. Intel's and LLVM's know the first variable alone.
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
OTHERS = ("KMP_BLOCKTIME", "KMP_LIBRARY")  # that decide the same


def let_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch's OpenMP threads sleep while they wait, unless the user's environment says how they wait.

    By default they spin for milliseconds at the end of each operation. Where another program needs one of the cores,
    a spinning thread holds back the one that it waits for: training and decoding take up to ten times as long.

    Args:
        environment: changed in place; OpenMP reads it when torch is imported, so that it is too late afterwards.
    """
    if "torch" in sys.modules or any(name in environment for name in (*SLEEPING, *OTHERS)):
        return
    environment.update(SLEEPING)
