"""Drives with little room: a small one (`small_disk` of the conftest) of one size after another, files cut short."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def resize(disk: Path, size: int) -> Path:
    """Empty the drive, and give it room for `size` bytes, a multiple of 4096."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    return disk


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Within, a write beyond `size` bytes of any file fails as it does on a full disk."""
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
