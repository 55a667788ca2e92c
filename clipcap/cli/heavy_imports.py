"""Python's start and end around a command, without the time that its garbage collector would take of them."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within, a command imports what it needs of torch and transformers: once, before it works.

    They make a million objects that all stay. The collector would look through them again and again, meanwhile,
    afterwards and at the end: a quarter of the time that one photo's caption takes. So it rests, and passes over them
    from then on. Programs that have imported torch by themselves are left as they are.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
