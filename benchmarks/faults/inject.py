"""The faults: a run is disturbed, what it leaves is looked at, and the same command is run again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.forked import Ended, Running, count_changes, die_before
from benchmarks.faults.work import Work, digests, standing_digests

RIGHT, SAID, KILLED = "finished right", "said in one line", "killed"


@dataclass(frozen=True)
class Injection:
    """One disturbed run.

    Args:
        outcome: RIGHT, SAID, KILLED, or what went wrong.
        rerun: RIGHT, or what went wrong when the command was run again; empty where it was not.
        kept: whether a reader found the older result or the new one, whole, after the fault.
        detail: where and when.
        line: what was said.
    """

    work: str
    kind: str
    outcome: str
    rerun: str
    kept: bool
    detail: str
    line: str = ""

    @property
    def good(self) -> bool:
        """Nothing lost, nothing wrong, nothing unclear."""
        return self.outcome in (RIGHT, SAID, KILLED) and self.rerun in (RIGHT, SAID, "") and self.kept


class Bench:
    """A work with its undisturbed result, ready to be disturbed.

    Args:
        stage: folder of the inputs.
        root: folder for everything else, a new one.
    """

    def __init__(self, work: Work, stage: Path, root: Path):
        self.work, self.stage, self.root = work, stage, root
        self.log, self.count = root / "log", 0
        clean = root / "undisturbed"
        clean.mkdir(parents=True)
        ended = work.run(stage, clean, self.log, first=count_changes(clean, root / "changes"))
        if ended.status:
            raise RuntimeError(f"{work.name}: {ended.err}")
        self.seconds, self.changes = ended.seconds, (root / "changes").stat().st_size
        self.right, self.whole = digests(clean, work.result), standing_digests(clean, work.result)
        self.size = sum(path.stat().st_size for path in clean.rglob("*") if path.is_file())
        self.older: Path | None = None
        if work.over:
            self.older = root / "older"
            self.older.mkdir()
            made = Running(work.over(stage, self.older / work.result), self.log).wait()
            if made.status:
                raise RuntimeError(f"{work.name}: {made.err}")

    def folder(self, over: bool = False) -> Path:
        """A new folder to work in, with an older result in it where asked for and possible."""
        self.count += 1
        folder = self.root / f"{self.count}"
        if over and self.older:
            shutil.copytree(self.older, folder)
        else:
            folder.mkdir()
        return folder

    def judged(self, ended: Ended, folder: Path) -> str:
        """The outcome of a run."""
        if ended.killed:
            return KILLED
        if ended.status == 0:
            return RIGHT if digests(folder, self.work.result) == self.right else "finished, and wrong"
        if ended.one_line:
            return SAID
        return "hung" if ended.status == 124 else f"status {ended.status}, not one clear line"

    def kept(self, folder: Path, over: bool) -> bool:
        """Whether each file of the result is that of the older one or of the new one, as a reader finds it."""
        if not (over and self.older):
            return True
        found = standing_digests(folder, self.work.result)
        old = standing_digests(self.older, self.work.result)
        if self.work.result == "scores":  # files replaced one by one
            return all(found.get(name) in (old[name], self.whole[name]) for name in old)
        return found in (old, self.whole)

    def again(self, folder: Path) -> str:
        """Run the command again, to its end."""
        ended = self.work.run(self.stage, folder, self.log, again=True)
        outcome = self.judged(ended, folder)
        return outcome if outcome == RIGHT else f"{outcome}: {last_line(ended)}"

    def done(self, kind: str, ended: Ended, folder: Path, over: bool, detail: str) -> Injection:
        """Judge a disturbed run, run it again, and clean up."""
        outcome, kept = self.judged(ended, folder), self.kept(folder, over)
        rerun = self.again(folder)
        line = ended.one_line or (last_line(ended) if ended.status else "")
        if rerun == RIGHT and kept:
            remove(folder)
        return Injection(self.work.name, kind, outcome, rerun, kept, f"{folder.name}, {detail}", line)


def last_line(ended: Ended) -> str:
    """The last thing a run said, for the record."""
    return next((line for line in reversed(ended.err.splitlines()) if line.strip()), f"status {ended.status}")


def remove(folder: Path) -> None:
    """Delete what was there."""
    shutil.rmtree(folder, ignore_errors=True)


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
            outcome, detail = bench.judged(ended, folder), f"{path.relative_to(left)} cut to {size}"
            line = ended.one_line or (last_line(ended) if ended.status else "")
            yield Injection(bench.work.name, "truncated, unfinished work", outcome, "", True, detail, line)
            remove(folder)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ranks(bench: Bench, folder: Path, again: bool = False) -> list[Running]:
    """The command over two processes, as torchrun would start them."""
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
             "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    words = [*bench.work.words(bench.stage, folder / bench.work.result), *(bench.work.again if again else ())]
    return [
        Running(words, bench.log / str(rank), {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]


def one_of_two_killed(bench: Bench, count: int, seed: int = 0) -> Iterator[Injection]:
    """SIGKILL to one of two processes; the other ends in one line, or waits until the launcher ends it.

    The rerun is of two processes again.
    """
    chance = random.Random(f"two {seed} {bench.work.name}")
    clean = bench.folder()
    started = time.monotonic()
    if any(running.wait().status for running in ranks(bench, clean)):
        raise RuntimeError(f"{bench.work.name}: does not run on two processes")
    seconds, right = time.monotonic() - started, digests(clean, bench.work.result)
    for number in range(count):
        folder, victim, after_s = bench.folder(), number % 2, chance.uniform(0.1, 1.0) * seconds
        both = ranks(bench, folder)
        time.sleep(after_s)
        both[victim].kill()
        both[victim].wait()
        other = both[1 - victim].end_as_launched()
        if other.status == 0:  # it has done its part; that the run has failed is the launcher's to say
            outcome = RIGHT if digests(folder, bench.work.result) == right else KILLED
        elif other.status == -signal.SIGTERM:
            outcome = KILLED
        else:
            outcome = SAID if other.one_line else f"status {other.status}, not one clear line"
        rerun = [running.wait() for running in ranks(bench, folder, again=True)]
        same = not any(r.status for r in rerun) and digests(folder, bench.work.result) == right
        again = RIGHT if same else f"wrong: {last_line(rerun[0])}"
        detail = f"{folder.name}, process {victim} of 2 after {after_s:.2f} s"
        line = other.one_line or last_line(other)
        yield Injection(bench.work.name, "one of two processes killed", outcome, again, True, detail, line)
        if same:
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


FAULTS: dict[str, Callable[..., Iterator[Injection]]] = {
    "random": random_kills,
    "changes": kills_before_changes,
    "twice": twice_killed,
    "interrupt": interrupted,
    "disk": full_disks,
    "read-only": read_only,
    "truncated": truncated_on_the_way,
    "two": one_of_two_killed,
}


def table(found: Sequence[Injection]) -> str:
    """Outcomes per command and fault, as Markdown, and every injection that was not good."""
    lines = [
        "| command | fault | injections | finished right | said in one line | killed | rerun right | lost or wrong |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key in dict.fromkeys((i.work, i.kind) for i in found):
        these = [i for i in found if (i.work, i.kind) == key]
        counts = [sum(i.outcome == outcome for i in these) for outcome in (RIGHT, SAID, KILLED)]
        rerun = sum(i.rerun == RIGHT for i in these)
        lines.append(
            "| " + " | ".join(map(str, (*key, len(these), *counts, rerun, sum(not i.good for i in these)))) + " |"
        )
    bad = [f"- {i.work}, {i.kind}, {i.detail}: {i.outcome}; rerun: {i.rerun}; kept: {i.kept}; {i.line}"
           for i in found if not i.good]  # fmt: skip
    return "\n".join([*lines, "", f"{len(found):,} injections, {len(bad)} lost, wrong or unclear", *bad])
