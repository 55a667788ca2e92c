"""Files of `torch.save` as tensors and plain data: none of their code is run, no memory taken beyond their size."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class UnsafeFileError(ValueError):
    """A file that claims more than it holds."""


def load_tensors(path: Path) -> Any:
    """What `torch.load` gives of a file, in either of its formats, on the CPU.

    Raises:
        UnsafeFileError: it would take more memory than its size tells.
        Exception: whatever torch raises of damaged and hostile files: RuntimeError, UnpicklingError, EOFError, …
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UnsafeFileError("holds compressed data, which torch does not write")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error says what matters
        content = torch.load(path, map_location="cpu", weights_only=True)
    _check(content)
    return content


def _check(content: Any) -> None:
    """A stride of 0 makes a tensor of any size out of one number, and the first copy of it fills the memory."""
    pending, seen = [content], set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise UnsafeFileError(f"holds a tensor of shape {list(value.shape)} with fewer numbers behind it")
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending += value.values() if isinstance(value, dict) else value
