"""Imports of torch and transformers without Python's garbage collector, which would take a quarter of a short run."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import what a command needs of torch and transformers within this context, once, before it works.

    The imports create a million objects that all stay alive. The collector would scan them again and again, during
    the imports, afterwards and at exit: a quarter of the time that the caption of one photo takes. So it is off
    within, and ignores these objects from then on. A program that imported torch before keeps its collector as it is.
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
