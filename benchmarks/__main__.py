"""A short version of every benchmark, and one table: `python -m benchmarks`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from benchmarks.measure import machine, table


def main() -> None:
    print(machine(), flush=True)
    names = sorted(path.parent.name for path in Path(__file__).parent.glob("*/bench.py"))
    print(table([c for name in names for c in import_module(f"benchmarks.{name}.bench").short()]))


if __name__ == "__main__":
    main()
