"""Files and folders replaced whole: a reader finds the old content or the new, never half, whatever is killed when.

A file is one rename. A folder is three, and what a kill between them leaves lies complete under a hidden name.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from clipcap.errors import ClipcapError
from clipcap.runtime.places import check_regular, sole_writer
from clipcap.runtime.text import one_line

_FULL = os.strerror(errno.ENOSPC)  # safetensors reports it only as text
_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{16}\.draft", re.DOTALL)  # see `_draft_name`
_TORCH = ("inline_container.cc", "iostream error")  # its writer reports a place in its code, not the cause


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the context, errors of writing `path`, such as a full disk, become one line that names it.

    Raises:
        ClipcapError: it could not be written.
    """
    try:
        yield
    except Exception as error:  # of a full disk, depending on who writes; tokenizers raise a bare Exception
        if not isinstance(error, (OSError, RuntimeError, SafetensorError)) and type(error) is not Exception:
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        if any(name in reason for name in _TORCH):
            reason = f"not all of it could be written, most likely: {_FULL}"
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _FULL in reason
        remedy = "free some space or choose another place" if full else "choose another place"
        raise ClipcapError(
            f"{path}: cannot be written ({reason}): {remedy}; what was there before is untouched"
        ) from error


@contextmanager
def replaced_file(path: Path, one_of_many: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `path`; if the block succeeds, it replaces `path`.

    Its name is random and the file is newly created, so that nobody can plant a link there.

    Args:
        path: of the file.
        one_of_many: do not search the folder for leftovers of killed runs, because it is large.
    Raises:
        ClipcapError: `path` is a device, a pipe or a socket, or another process is writing there.
    """
    with sole_writer(path):
        if not one_of_many:
            _remove_drafts(path)
        draft = _draft_name(path)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        try:
            yield draft
            _sync(draft)
            os.replace(draft, path)
            _sync(path.parent)
        finally:
            draft.unlink(missing_ok=True)


class ManyFiles:
    """Files of folders that may be large: each folder is searched once for what killed runs have left."""

    def __init__(self) -> None:
        self._left: dict[Path, dict[str, list[Path]]] = {}  # by folder: drafts by the name of their file

    @contextmanager
    def replaced(self, path: Path) -> Iterator[Path]:
        """As `replaced_file`."""
        with sole_writer(path):
            if path.parent not in self._left:
                self._left[path.parent] = _drafts_in(path.parent)
            for draft in self._left[path.parent].pop(path.name, ()):
                _remove(draft)
            with replaced_file(path, one_of_many=True) as draft:
                yield draft


def _drafts_in(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in os.listdir(folder):
        if match := _DRAFT.fullmatch(name):
            found.setdefault(match[1], []).append(folder / name)
    return found


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty draft folder; if the block succeeds, it replaces `folder`.

    Raises:
        ClipcapError: `folder` is a device, a pipe or a socket, or another process is writing there.
    """
    folder = folder.absolute()
    with sole_writer(folder):
        new, old = _hidden(folder)
        recover(folder)
        draft = _draft_name(folder)
        draft.mkdir(parents=True)
        try:
            yield draft
            for path in (*draft.rglob("*"), draft):
                _sync(path)
            check_regular(folder)  # hours may have passed
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        draft.rename(new)  # complete from here on
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
        _remove(old)


def recover(folder: Path) -> None:
    """Finish a replacement that was interrupted; only for the one who writes the folder."""
    folder = folder.absolute()
    new, old = _hidden(folder)
    _remove_drafts(folder)
    if _is_own(new):
        if folder.exists():
            _remove(old)
            folder.rename(old)
        new.rename(folder)
    elif _is_own(old) and not folder.exists():
        old.rename(folder)
    _remove(new)
    _remove(old)


def current_path(folder: Path) -> Path:
    """Where the content of `folder` lies, also after an interrupted replacement; changes nothing."""
    if folder.exists() or not folder.name:
        return folder
    return next((path for path in _hidden(folder) if _is_own(path)), folder)


def folders_in(parent: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """The entries of `parent` that are `wanted`, without drafts and other hidden names."""
    names = {p.name for p in parent.iterdir()}
    names |= {name[1:-4] for name in names if name.startswith(".") and name.endswith((".new", ".old"))}
    return [
        parent / name for name in sorted(names) if not name.startswith(".") and wanted(current_path(parent / name))
    ]


def best_checkpoint_in(parent: Path, wanted: Callable[[Path], bool]) -> Path | None:
    """The first choice among the `wanted` checkpoints in `parent`; None if there are none.

    `best` comes before `last`, that before the numbered ones, the highest of them first.
    """
    return current_path(max(found, key=_rank)) if (found := folders_in(parent, wanted)) else None


def _rank(path: Path) -> tuple:
    name = re.sub(r"\.(pt|pth|ckpt|bin|safetensors)(\.tar)?$", "", path.name)
    number = re.search(r"-(\d+)$", name)
    return name.endswith("-best"), name.endswith("-last"), int(number[1]) if number else -1, name


def _hidden(folder: Path) -> tuple[Path, Path]:
    """Paths of the complete folder that is not yet renamed, and of the one that it replaces."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _is_own(folder: Path) -> bool:
    """Whether the writer of the folder left this hidden folder; others may plant one in a public folder."""
    try:
        found, parent = folder.lstat(), folder.parent.stat()
    except (OSError, ValueError):  # a name with a NUL character
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), parent.st_uid)


def _draft_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")


def _remove_drafts(path: Path) -> None:
    """Remove drafts of `path` that killed runs have left; only for its sole writer."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(?:[0-9a-f]{{16}}\.)?draft")
    try:
        left = [entry.path for entry in os.scandir(path.parent) if name.fullmatch(entry.name)]
    except OSError:
        return
    for draft in left:
        _remove(Path(draft))


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link, but nothing that it links to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
