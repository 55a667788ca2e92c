"""A small drive (`small_disk` of the conftest) of one size after another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def resize(disk: Path, size: int) -> Path:
    """Empty the drive, and give it room for `size` bytes, a multiple of 4096."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    return disk
