"""Runs of two processes of which one is killed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.forked import Running, two_ranks
from tests.faults.outcome import KILLED, RIGHT, SAID, Bench, Injection, last_line, remove
from tests.faults.work import digests


def ranks(bench: Bench, folder: Path, again: bool = False) -> list[Running]:
    """The command over two processes."""
    words = bench.work.words(bench.stage, folder / bench.work.result)
    return two_ranks([*words, *(bench.work.again if again else ())], bench.log)


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
