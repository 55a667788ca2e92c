"""The faults: a run is disturbed, what it leaves is looked at, and the same command is run again."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.forked import die_before
from tests.faults.outcome import RIGHT, SAID, Bench, Injection, last_line, remove

FULL = os.strerror(errno.ENOSPC)
CARD = "README.md"  # does not say how long it is: a cut one is a shorter one


def random_kills(bench: Bench, count: int, seed: int = 0) -> Iterator[Injection]:
    """SIGKILL at random instants of the run."""
    chance = random.Random(f"{seed} {bench.work.name}")
    for number in range(count):
        over, after_s = number % 2 == 1, chance.uniform(0.0, 1.1 * bench.seconds)
        folder = bench.folder(over)
        running = bench.work.start(bench.stage, folder, bench.log)
        time.sleep(after_s)
        running.kill()
        yield bench.done("kill, random instant", running.wait(), folder, over, f"{after_s:.3f} s")


def kills_before_changes(bench: Bench, most: int) -> Iterator[Injection]:
    """SIGKILL before each change of a file or folder, or before as many of them, evenly spread."""
    step = max(1.0, bench.changes / most)
    for number in range(min(most, bench.changes)):
        operation, over = int(number * step), number % 2 == 1
        folder = bench.folder(over)
        ended = bench.work.run(bench.stage, folder, bench.log, first=die_before(operation, folder))
        yield bench.done("kill, before a change of files", ended, folder, over, f"change {operation}")


def twice_killed(bench: Bench, count: int, seed: int = 0) -> Iterator[Injection]:
    """SIGKILL at a random instant, and again in the run that goes on."""
    chance = random.Random(f"twice {seed} {bench.work.name}")
    for _ in range(count):
        folder = bench.folder()
        for again in (False, True):
            running = bench.work.start(bench.stage, folder, bench.log, again)
            time.sleep(chance.uniform(0.2, 1.0) * bench.seconds)
            running.kill()
            ended = running.wait()
        yield bench.done("kill, twice", ended, folder, False, "")


@contextmanager
def mounted(*words: object) -> Iterator[Path]:
    """A mount for the time of the block; the last word is the place.

    Raises:
        PermissionError: it is not allowed here.
    """
    place = Path(words[-1])
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"no mounting here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def full_disks(bench: Bench, count: int, seed: int = 0) -> Iterator[Injection]:
    """A drive of its own that has room for a part of the result; then there is room, and the command is run again."""
    chance = random.Random(f"disk {seed} {bench.work.name}")
    for number in range(count):
        over = number % 2 == 1 and bench.older is not None
        older = sum(-(-p.stat().st_size // 4096) + 1 for p in bench.older.rglob("*")) * 4096 if over else 0
        room = older + chance.randrange(4096, int(1.2 * bench.size) + 8192, 4096)
        folder = bench.root / f"disk{number}"
        with mounted("-t", "tmpfs", "-o", f"size={room}", "tmpfs", folder):
            if over:
                shutil.copytree(bench.older, folder, dirs_exist_ok=True)
            ended = bench.work.run(bench.stage, folder, bench.log)
            outcome, kept = bench.judged(ended, folder), bench.kept(folder, over)
            if outcome == SAID and FULL not in ended.err:
                outcome = "said in one line, and not that the disk is full"
            subprocess.run(["mount", "-o", "remount,size=256m", folder], check=True)
            rerun = bench.again(folder)
        line = ended.one_line or (last_line(ended) if ended.status else "")
        yield Injection(bench.work.name, "full disk", outcome, rerun, kept, f"{room:,} bytes, over {over}", line)


def read_only(bench: Bench) -> Iterator[Injection]:
    """A folder that nobody may write to: a read-only bind mount, since root ignores modes."""
    for over in (False, True) if bench.older else (False,):
        folder = bench.folder(over)
        with mounted("--bind", folder, folder):
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
            ended = bench.work.run(bench.stage, folder, bench.log)
            outcome, kept = bench.judged(ended, folder), bench.kept(folder, over)
        rerun = bench.again(folder)
        yield Injection(bench.work.name, "read-only folder", outcome, rerun, kept, f"over {over}", last_line(ended))


def powers(size: int) -> list[int]:
    """0 and every power of two below a size."""
    return [0, *(2**k for k in range(size.bit_length()) if 2**k < size)]


def truncated_on_the_way(bench: Bench, at: float, most: int | None = None) -> Iterator[Injection]:
    """What an interrupted run has left, each file of it cut at every power of two bytes, one at a time.

    Args:
        at: share of the changes of files after which the run was killed.
        most: as many cuts per file, evenly spread (None: all).
    """
    left = bench.folder()
    bench.work.run(bench.stage, left, bench.log, first=die_before(int(at * bench.changes), left))
    for path in sorted(p for p in left.rglob("*") if p.is_file()):
        cuts = powers(path.stat().st_size)
        for size in cuts if most is None else cuts[:: max(1, len(cuts) // most)]:
            folder = bench.root / f"{left.name}cut"
            remove(folder)
            shutil.copytree(left, folder)
            os.truncate(folder / path.relative_to(left), size)
            ended = bench.work.run(bench.stage, folder, bench.log, again=True)
            outcome = bench.judged(ended, folder, path.relative_to(left) if path.name == CARD else None)
            detail = f"{path.relative_to(left)} cut to {size}"
            line = ended.one_line or (last_line(ended) if ended.status else "")
            yield Injection(bench.work.name, "truncated, unfinished work", outcome, "", True, detail, line)
            remove(folder)


def interrupted(bench: Bench, count: int, seed: int = 0) -> Iterator[Injection]:
    """Ctrl-C at random instants: one line, status 130, and the rerun is right."""
    chance = random.Random(f"interrupt {seed} {bench.work.name}")
    for _ in range(count):
        folder, after_s = bench.folder(), chance.uniform(0.0, 1.0) * bench.seconds
        running = bench.work.start(bench.stage, folder, bench.log)
        time.sleep(after_s)
        running.kill(signal.SIGINT)
        ended = running.wait()
        clear = ended.status == 130 and "Traceback" not in ended.err
        outcome = SAID if clear else bench.judged(ended, folder)
        rerun = bench.again(folder)
        yield Injection(bench.work.name, "Ctrl-C", outcome, rerun, True, f"{after_s:.2f} s", last_line(ended))
        if rerun == RIGHT:
            remove(folder)
