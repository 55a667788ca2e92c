"""Places that commands write to: files and folders, never devices or pipes, and one process at a time in each."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce, wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from clipcap.errors import ClipcapError
from clipcap.runtime.text import shown

try:
    import fcntl
except ImportError:  # Windows: nothing separates two runs of one command there
    fcntl = None

P = ParamSpec("P")
R = TypeVar("R")
_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_locked: set[tuple[int, Path]] = set()  # (process, place): locks do not count within a process


def special_kind(mode: int) -> str | None:
    """A device, a pipe or a socket, by the `st_mode` of a path; None of files and folders."""
    return _KINDS.get(stat.S_IFMT(mode))


def check_regular(path: Path) -> None:
    """Refuse to write to what is neither a file nor a folder: a rename would replace a device by a file.

    Raises:
        ClipcapError: `path`, or what it links to, is a device, a pipe or a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # nothing exists there, or writing reports why it fails
        return
    if kind := special_kind(mode):
        raise ClipcapError(f"{shown(path)}: is {kind}, and only files and folders are written: choose another name")


@contextmanager
def sole_writer(path: str | Path) -> Iterator[None]:
    """Hold `path` and all below it against other processes that write there; nested calls of one process are free.

    The lock is a file beside `path` which is removed at the end. The system ends the lock when the process ends,
    however it ends. Where no lock can be had (a read-only folder, a network drive without locks) none is held.

    Raises:
        ClipcapError: another process is writing there, or no file can be written at `path`.
    """
    place = Path(path).expanduser()
    check_regular(place)
    place = Path(os.path.realpath(place.parent), place.name)
    key = (os.getpid(), place)
    covered = any((os.getpid(), outer) in _locked for outer in (place, *place.parents))
    if covered or not place.name:
        yield
        return
    name = place.with_name(f".{place.name}.lock")
    lock = _lock(name, place)
    _locked.add(key)
    try:
        yield
    finally:
        _locked.discard(key)
        if lock is not None:
            name.unlink(missing_ok=True)
            os.close(lock)


def writes_to(place: str | Callable[[dict[str, Any]], Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function be the sole writer of a place while it runs; of several processes of one run, the first locks.

    Args:
        place: which argument names the place (`out`, or `config.out` of its attributes), or what gives it from the
            arguments by name; empty and None are skipped.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = signature(function)

        @wraps(function)
        def alone(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = parameters.bind(*args, **kwargs)
            bound.apply_defaults()
            path = place(bound.arguments) if callable(place) else _named(bound.arguments, place)
            if not path or os.environ.get("RANK", "0") != "0":
                return function(*args, **kwargs)
            with sole_writer(path):
                return function(*args, **kwargs)

        return alone

    return decorate


def _named(arguments: dict[str, Any], name: str) -> Any:
    argument, *attributes = name.split(".")
    return reduce(getattr, attributes, arguments[argument])


def _lock(name: Path, place: Path) -> int | None:
    """The locked file of that name; None if the file system has no locks."""
    if fcntl is None:
        return None
    while True:
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError:  # writing there will say why it fails
            return None
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by workers
            if os.path.samestat(os.fstat(lock), os.stat(name, follow_symlinks=False)):
                return lock
        except (BlockingIOError, PermissionError) as error:
            os.close(lock)
            raise ClipcapError(
                f"{shown(place)}: another process is writing there: wait for it, end it, or choose another place"
            ) from error
        except FileNotFoundError:  # its holder has just ended and removed it
            pass
        except OSError:
            os.close(lock)
            return None
        os.close(lock)
