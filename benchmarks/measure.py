"""Plain and ours in turn, memory in processes of their own, and the machine's ceilings."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[1]
# Seconds: `time.perf_counter`, or `time.process_time` with one thread on a machine that is busy with other work.
Clock = Callable[[], float]


@dataclass
class Comparison:
    """Seconds per item of the plain baseline and of ours, measured in turn."""

    stage: str
    target: str
    plain: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def turn(self, plain: Callable[[], int], ours: Callable[[], int], clock: Clock = time.perf_counter) -> None:
        """Time each once; both return how many items they have done."""
        for times, run in ((self.plain, plain), (self.ours, ours)):
            start = clock()
            items = run()
            times.append((clock() - start) / items)

    def row(self) -> str:
        """A line of the table: items a second, and how many times faster, as median and range over the turns."""
        ratios = sorted(a / b for a, b in zip(self.plain, self.ours, strict=True))
        speeds = [f"{1 / statistics.median(times):.3g}" for times in (self.plain, self.ours)]
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        return f"| {' | '.join([self.stage, *speeds, spread, self.target, '; '.join(self.notes)])} |"


def table(comparisons: Sequence[Comparison]) -> str:
    """All comparisons as a Markdown table."""
    head = (
        "| stage | plain, 1/s | ours, 1/s | ratio (range) | target | notes |\n| --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *(comparison.row() for comparison in comparisons)])


def peak_gib(module: str, *words: str) -> float:
    """Peak resident memory of `python -m module words`, in GiB."""
    code = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__'); "
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, module, *words]
    done = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 2**20


def matmul_flops(clock: Clock = time.perf_counter, size: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations a second of a square float32 matrix product: 2·n³ over the median time."""
    a, b = torch.randn(2, size, size).unbind(0)
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = clock()
        a @ b
        times.append(clock() - start)
    return 2 * size**3 / statistics.median(times[1:])


def machine() -> str:
    """Hardware, versions, commit and load, in one line."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True)
    return (
        f"{names[0].split(':')[1].strip() if names else platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit.stdout.strip() or 'none'}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
