"""The `clipcap` command in a forked process: everything is imported once, so that a run costs what it computes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from clipcap.cli.main import main

PATIENCE_S = 120.0  # a run that takes longer hangs
HEAVY = ("features.parse", "features.tools", "training.train", "evaluation.evaluate", "retrieval.build",
         "retrieval.search", "captioning.predict", "contrastive.train",
         "clip_gpt.train", "clip_gpt.write", "fit.fit")  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit status (negative: the signal), seconds, and what it said."""

    status: int
    seconds: float
    out: str
    err: str

    @property
    def killed(self) -> bool:
        """By SIGKILL."""
        return self.status == -signal.SIGKILL

    @property
    def one_line(self) -> str | None:
        """The line with which it refused or gave up; None where it said anything but one clear line."""
        said = [line for line in self.err.splitlines() if line.startswith("clipcap: error: ")]
        clear = self.status == 1 and len(said) == 1 and "Traceback" not in self.err
        return said[0] if clear else None


def warm_up() -> None:
    """Import what the commands import when they start; a run forked after this starts at once."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name in HEAVY:
        import_module(f"clipcap.{name}")


class Running:
    """A command at work in a process of its own."""

    def __init__(
        self,
        words: Sequence[object],
        log: Path,
        environment: Mapping[str, str] | None = None,
        first: Callable[[], None] = lambda: None,
    ):
        log.mkdir(parents=True, exist_ok=True)
        self.log, self.started = log, time.monotonic()
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(list(map(str, words)), log, environment or {}, first)

    @property
    def alive(self) -> bool:
        """Whether it runs on; one that has ended is still to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end_as_launched(self, grace_s: float = 5.0) -> Ended:
        """What torchrun does when another process has died: SIGTERM, here after some seconds to end by itself."""
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and self.alive:
            time.sleep(0.01)
        self.kill(signal.SIGTERM)
        return self.wait()

    def wait(self, patience_s: float = PATIENCE_S) -> Ended:
        """Wait for the end; one who does not come to it is killed and counts as status 124."""
        deadline, late = self.started + patience_s, False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline and not late:
                late = True
                self.kill()
            time.sleep(0.002)
        code = 124 if late else os.waitstatus_to_exitcode(status)
        out, err = ((self.log / name).read_text(errors="replace") for name in ("out", "err"))
        return Ended(code, time.monotonic() - self.started, out, err)


def two_ranks(words: Sequence[object], log: Path) -> list[Running]:
    """The command over two processes that share the CPU, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
             "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    return [
        Running(words, log / str(rank), {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]


def _run(words: list[str], log: Path, environment: Mapping[str, str], first: Callable[[], None]) -> None:
    status = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ.update(environment)
        _forget_processes()
        first()
        status = main(words)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def _forget_processes() -> None:
    """accelerate holds the number of processes that it found when it first started."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


def die_before(operation: int, below: Path) -> Callable[[], None]:
    """For `first`: SIGKILL before the `operation`-th change of files below a folder, counted from 0."""
    left = operation

    def watch(event: str, args: tuple) -> None:
        nonlocal left
        if changes_files(event, args, below):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(watch)


def count_changes(below: Path, to: Path) -> Callable[[], None]:
    """For `first`: a byte in the file `to` for each change of files below a folder."""

    def count() -> None:
        log = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(lambda event, args: changes_files(event, args, below) and os.write(log, b"."))

    return count


_CHANGES = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"))


def changes_files(event: str, args: tuple, below: Path) -> bool:
    """Whether an audit event of Python is a change of files below a folder."""
    if event == "open":
        path, _, flags = args
        if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return False
    elif event in _CHANGES:
        path = args[0]
    else:
        return False
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    place = os.fspath(path)
    place = os.fsdecode(place) if isinstance(place, bytes) else place
    return not os.path.isabs(place) or place.startswith(str(below))  # rmtree names by folder descriptor
