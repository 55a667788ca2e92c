"""The package's logger: what the work reports. A program that imports clipcap sets it up as any other:

>>> logging.getLogger("clipcap").setLevel(logging.INFO)  # progress too, or logging.ERROR: silence
"""

from __future__ import annotations

import logging
import os


def _is_main_process(record: logging.LogRecord) -> bool:
    """Whether the record comes from the first process of a run: the others would repeat it."""
    return os.environ.get("RANK", "0") == "0"


logger = logging.getLogger("clipcap")
logger.addFilter(_is_main_process)
