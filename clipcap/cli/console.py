"""Shows the package's messages on stderr, so that stdout holds only results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from clipcap.runtime.messages import logger


class _Console(logging.Handler):
    """Writes messages unchanged, and prefixes warnings with `warning: `."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        progress = sys.modules.get("clipcap.runtime.progress")  # where no bar was made, it costs nothing to start
        if progress is not None:
            progress.make_room()
        print(f"{prefix}{record.getMessage()}", file=sys.stderr)  # look it up each time: programs replace it


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Send the package's messages and progress to stderr within the context, then restore the logger."""
    handler, level, propagate = _Console(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library that sets up the root logger would show each message twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
