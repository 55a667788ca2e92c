"""Ctrl-C that is never lost: what Python is called back for may swallow the KeyboardInterrupt it raises."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def raise_lost_interrupts() -> Iterator[Callable[[], None]]:
    """Gives a function to call before work is kept: it raises the KeyboardInterrupt that came up and got lost.

    A decoder that swallows one leaves a picture that looks damaged, and a run that continues as if nobody had stopped
    it. Threads other than the main one get no signals, and handlers of others stay: there it does nothing.
    """
    usual, seen = signal.getsignal(signal.SIGINT), []
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if seen:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Within, Ctrl-C waits for the end: for work that is short, and swallows a KeyboardInterrupt with a traceback.

    Such as `fork`, around which Python calls functions of its own, in both processes.
    """
    usual, seen = signal.getsignal(signal.SIGINT), []
    if not callable(usual) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if seen:
        signal.raise_signal(signal.SIGINT)
