"""Imports of torch and transformers without Python's garbage collector, which would take a quarter of a short run."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_process_of_command = False


@contextmanager
def heavy_imports(command: bool = False) -> Iterator[None]:
    """Import large packages within this context, once, before the work that needs them.

    The imports create a million objects that all stay alive. The collector would scan them again and again, during
    the imports, afterwards and at exit: a quarter of the time that the caption of one photo takes. So it is off
    within, and ignores these objects from then on. A program that imported torch before keeps its collector as it is.

    Args:
        command: whether a command begins here; others may follow within it.
    """
    global _process_of_command
    if command:
        _process_of_command = "torch" not in sys.modules
    if not _process_of_command or not gc.isenabled():
        yield
        return
    gc.disable()
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@cache
def transformers_package() -> Any:
    """transformers without its messages and bars, imported at the first use: it takes longer than torch."""
    with heavy_imports():
        import transformers
        from transformers import AutoModelForCausalLM, GPT2LMHeadModel  # noqa: F401 - imports what they need
        from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers
