"""The message of an interrupted command: what is on disk, and how to continue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def states_what_is_left(state: Callable[[], str]) -> Iterator[None]:
    """Within, Ctrl-C carries the text of `state`: what is on disk at that moment, and how to continue."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(str(interrupt) or state()) from None
