"""Where a fuzz target writes its inputs: memory, where the machine has such a folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def folder_in_memory() -> Path:
    """A new empty folder."""
    return Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
