"""Files and folders replaced whole: a reader finds the old content or the new, never half, whatever is killed when.

A file is one rename. A folder is three, and what a kill between them leaves lies complete under a hidden name.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from clipcap.errors import ClipcapError
from clipcap.runtime.text import one_line

_FULL = os.strerror(errno.ENOSPC)  # safetensors says it in words alone
_TORCH = "inline_container.cc"  # torch's writer says where in its code it failed, and not why


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around the writing of `path`: a full disk and its kin in one line that names it.

    Raises:
        ClipcapError: it could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # of a full disk, depending on who writes
        reason = getattr(error, "strerror", None) or one_line(error)
        if _TORCH in reason:
            reason = f"not all of it could be written, most likely: {_FULL}"
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _FULL in reason
        mend = "free some space or choose another place" if full else "choose another place"
        raise ClipcapError(
            f"{path}: cannot be written ({reason}): {mend}; what was there before is untouched"
        ) from error


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block ends well, what was written there takes its place."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        yield draft
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty draft folder; when the block ends well, it takes the place of `folder`."""
    folder = folder.absolute()
    draft, new, old = _hidden(folder)
    recover(folder)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in (*draft.rglob("*"), draft):
            _sync(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    draft.rename(new)  # complete from here on
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Finish a replacement that was interrupted; only for the one who writes the folder."""
    folder = folder.absolute()
    draft, new, old = _hidden(folder)
    shutil.rmtree(draft, ignore_errors=True)
    if new.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
    elif old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def current_path(folder: Path) -> Path:
    """Where the content of `folder` lies, also after an interrupted replacement; changes nothing."""
    if folder.exists() or not folder.name:
        return folder
    _, new, old = _hidden(folder)
    return next((path for path in (new, old) if path.exists()), folder)


def folders_in(parent: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """What stands in `parent` and is `wanted`; drafts and other hidden names are passed over."""
    names = {p.name for p in parent.iterdir()}
    names |= {name[1:-4] for name in names if name.startswith(".") and name.endswith((".new", ".old"))}
    return [
        parent / name for name in sorted(names) if not name.startswith(".") and wanted(current_path(parent / name))
    ]


def best_checkpoint_in(parent: Path, wanted: Callable[[Path], bool]) -> Path | None:
    """Where the checkpoint lies that `parent` is best known for, of all that are `wanted`; None where none is.

    `best` comes before `last`, that before the numbered ones, the highest of them first.
    """
    return current_path(max(found, key=_rank)) if (found := folders_in(parent, wanted)) else None


def _rank(path: Path) -> tuple:
    name = path.name.removesuffix(".pt")
    number = re.search(r"-(\d+)$", name)
    return name.endswith("-best"), name.endswith("-last"), int(number[1]) if number else -1, name


def _hidden(folder: Path) -> tuple[Path, Path, Path]:
    draft, new, old = (folder.with_name(f".{folder.name}.{part}") for part in ("draft", "new", "old"))
    return draft, new, old


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
