"""Disturb every command in every way, and print what came of it: `python -m benchmarks.faults.run`."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from benchmarks.faults import inject, truncate
from benchmarks.faults.forked import warm_up
from benchmarks.faults.inject import Bench, Injection
from benchmarks.faults.work import WORKS, prepare

TWO = ("parse", "parse to a folder", "train", "evaluate", "contrastive")  # that share their work out


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
        "two": lambda: inject.one_of_two_killed(bench, few) if bench.work.name in TWO else iter(()),
    }
    for kind, faults in planned.items():
        if kind in kinds:
            yield from faults()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="injections of the commonest kinds per command")
    parser.add_argument("--works", nargs="*", default=list(WORKS), help=f"of {', '.join(WORKS)}")
    parser.add_argument("--kinds", nargs="+", default=[*inject.FAULTS, "inputs"], help="kinds of faults")
    args = parser.parse_args()
    warm_up()
    fast = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="clipcap-faults-", dir=fast if fast.is_dir() else None))
    started, found = time.monotonic(), []
    try:
        stage = prepare(root / "stage", root / "log")
        for name in args.works:
            bench = Bench(WORKS[name], stage, root / name.replace(" ", "_").replace(",", ""))
            found += _noted(injections(bench, set(args.kinds), args.count))
            shutil.rmtree(bench.root, ignore_errors=True)
        if "inputs" in args.kinds:
            found += _noted(truncate.truncated_inputs(stage, root / "inputs"))
        print(inject.table(found))
        print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _noted(found: Iterator[Injection]) -> Iterator[Injection]:
    for injection in found:
        if not injection.good:
            print(f"BAD {injection}", flush=True)
        yield injection


if __name__ == "__main__":
    main()
