"""Disturb every command in every way, and print what came of it: `python -m tests.faults.run`."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from tests.faults import inject, launched, truncate, two
from tests.faults.forked import warm_up
from tests.faults.outcome import Bench, Injection, table
from tests.faults.work import WORKS, prepare

KINDS = ("random", "changes", "twice", "interrupt", "disk", "read-only", "truncated", "two", "torchrun", "inputs")
TWO = ("parse", "parse to a folder", "train", "evaluate", "contrastive")  # that share their work out
TORCHRUN = ("parse", "train")


def injections(bench: Bench, kinds: set[str], count: int) -> Iterator[Injection]:
    """The faults of one command; `count` of each kind that has no number of its own."""
    few = max(2, count // 5)
    planned = {
        "random": lambda: inject.random_kills(bench, count),
        "changes": lambda: inject.kills_before_changes(bench, 2 * count),
        "twice": lambda: inject.twice_killed(bench, few),
        "interrupt": lambda: inject.interrupted(bench, few),
        "disk": lambda: inject.full_disks(bench, few),
        "read-only": lambda: inject.read_only(bench),
        "truncated": lambda: chain.from_iterable(inject.truncated_on_the_way(bench, at) for at in (0.5, 0.95)),
        "torchrun": lambda: launched.one_of_torchruns_killed(bench, few) if bench.work.name in TORCHRUN else iter(()),
        "two": lambda: two.one_of_two_killed(bench, few) if bench.work.name in TWO else iter(()),
    }
    running = [faults() for kind, faults in planned.items() if kind in kinds]
    while running:  # in turns, so that a deadline cuts off no kind
        for faults in list(running):
            injection = next(faults, None)
            if injection is None:
                running.remove(faults)
            else:
                yield injection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="injections of the commonest kinds per command")
    parser.add_argument("--works", nargs="*", default=list(WORKS), help=f"of {', '.join(WORKS)}")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after, each command having its share")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of faults")
    args = parser.parse_args()
    warm_up()
    fast = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="clipcap-faults-", dir=fast if fast.is_dir() else None))
    started, found = time.monotonic(), []
    try:
        stage = prepare(root / "stage", root / "log")
        shares = len(args.works) + ("inputs" in args.kinds)
        for number, name in enumerate(args.works, 1):
            bench = Bench(WORKS[name], stage, root / name.replace(" ", "_").replace(",", ""))
            found += _noted(
                injections(bench, set(args.kinds), args.count), started + 60 * args.minutes * number / shares
            )
            shutil.rmtree(bench.root, ignore_errors=True)
        if "inputs" in args.kinds:
            found += _noted(truncate.truncated_inputs(stage, root / "inputs"), started + 60 * args.minutes)
        print(table(found))
        print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _noted(found: Iterator[Injection], deadline: float) -> Iterator[Injection]:
    """The injections until the deadline; one that is not good is said at once."""
    for injection in found:
        if not injection.good:
            print(f"BAD {injection}", flush=True)
        yield injection
        if time.monotonic() > deadline:
            return


if __name__ == "__main__":
    main()
