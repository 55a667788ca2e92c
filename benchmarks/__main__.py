"""A short version of every benchmark, and one table: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.measure import REPO, ceilings, machine, table

LONGEST_S = 180  # of one benchmark


def main() -> None:
    here = Path(__file__).parent
    names = sys.argv[1:] or sorted(path.parent.name for path in here.glob("speed/*/bench.py"))
    print(machine(), ceilings(), sep="\n", flush=True)
    rows = [row for name in names for row in rows_of(name)]
    print(table([]), *rows, machine(), sep="\n")


def rows_of(name: str, longest_s: float = LONGEST_S) -> list[str]:
    """Lines of the table, made by a process of its own; where it fails, that is said and the others go on."""
    command = [sys.executable, "-c", f"import benchmarks.__main__ as b; b.print_rows({name!r})"]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=longest_s)
        lines = done.stdout.splitlines()
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        lines, why = [], f"not done after {longest_s:.0f} s"
    result = f"failed: {why}" if why else "done"
    print(f"{name}: {result}, {time.perf_counter() - start:.0f} s", flush=True)
    return [line for line in lines if line.startswith("| ")]


def print_rows(name: str) -> None:
    """Run the short version of one benchmark; print its lines of the table."""
    for comparison in import_module(f"benchmarks.speed.{name}.bench").short():
        print(comparison.row(), flush=True)


if __name__ == "__main__":
    main()
