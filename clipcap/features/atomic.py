"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipcap.errors import ClipcapError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block ends well, what lies there takes the place of `path`.

    Raises:
        ClipcapError: it could not be written, for want of space for example; nothing half-written is left.
    """
    draft = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(draft)
        yield draft
        for file in [*draft.rglob("*"), draft]:
            _sync(file)
        _replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "free some space or choose another place" if full else "choose another place"
        raise ClipcapError(f"{path}: cannot be written ({error.strerror or error}): {mend}") from error
    finally:
        _remove(draft)


def _replace(draft: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    if path.is_dir() and draft.is_dir():  # a folder cannot be renamed over a full one
        _remove(old)
        path.rename(old)
    os.replace(draft, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
