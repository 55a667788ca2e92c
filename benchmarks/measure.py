"""Plain and ours in turn, memory in processes of their own, and the machine's ceilings."""

from __future__ import annotations

import argparse
import io
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
# Seconds: `time.perf_counter`, or `time.process_time` with one thread on a machine that is busy with other work.
Clock = Callable[[], float]


def children_time() -> float:
    """CPU seconds of the processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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


SIDES = ("plain", "ours")


def flags_of(description: str, turns: int) -> argparse.ArgumentParser:
    """The command line of a comparison: what all of them take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=turns, help="how often plain and ours are timed")
    parser.add_argument("--no_memory", action="store_true", help="leave out the peak memory of each side")
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with OMP_NUM_THREADS=1")
    parser.add_argument("--memory_of", choices=SIDES, help=argparse.SUPPRESS)  # in a process of its own
    return parser


def table(comparisons: Sequence[Comparison]) -> str:
    """All comparisons as a Markdown table."""
    head = (
        "| stage | plain, 1/s | ours, 1/s | ratio (range) | target | notes |\n| --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *(comparison.row() for comparison in comparisons)])


def peak_gib(module: str, *words: str) -> float:
    """Peak memory of `python -m module words`, in GiB: resident, or allocated on the GPU where it uses one."""
    command = [sys.executable, "-c", _PEAK, module, *words]
    done = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1]) / 2**20


# Not getrusage's ru_maxrss: a new process takes that over from the one that started it.
_PEAK = """
import pathlib, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
on_gpu = cuda is not None and cuda.is_initialized()
status = pathlib.Path("/proc/self/status").read_text()
print("peak", cuda.max_memory_allocated() // 1024 if on_gpu else status.split("VmHWM:")[1].split()[0])
"""


def forget_peak(device: torch.device) -> None:
    """Let the peak of this process begin anew: what was there only while it prepared does not count."""
    Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def clock_of(device: torch.device, cpu_time: bool = False) -> Clock:
    """The clock for work on a device: a GPU works on while the program does, and is waited for."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device) or time.perf_counter()
    return time.process_time if cpu_time else time.perf_counter


def matmul_flops(
    clock: Clock = time.perf_counter,
    size: int = 2048,
    repeats: int = 5,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:
    """Floating-point operations a second of a square matrix product: 2·n³ over the median time."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind(0)
    return 2 * size**3 / _median_time(lambda: a @ b, clock, repeats)


def _median_time(work: Callable[[], object], clock: Clock, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times[1:])


def copied_bytes(clock: Clock = time.perf_counter, mib: int = 256, repeats: int = 5) -> float:
    """Bytes a second of a copy in memory, those read and those written counted both: twice its size over the time."""
    source = torch.zeros(mib << 20, dtype=torch.uint8)
    target = torch.ones_like(source)  # its pages exist already
    return 2 * len(source) / _median_time(lambda: target.copy_(source), clock, repeats)


def jpeg_images(clock: Clock = time.perf_counter, width: int = 640, height: int = 480, repeats: int = 20) -> float:
    """Photo-like JPEGs (quality 90) of this size that one core decodes to RGB in a second, by Pillow."""
    rng = np.random.default_rng(0)
    layers = [rng.integers(0, 256, (height // step, width // step, 3), np.uint8) for step in (160, 40, 10, 2)]
    images = [Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC) for layer in layers]
    photo = np.average([np.asarray(image) for image in images], axis=0, weights=(8, 4, 2, 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=90)
    return 1 / _median_time(lambda: Image.open(io.BytesIO(file.getvalue())).convert("RGB"), clock, repeats)


def ceilings(clock: Clock = time.perf_counter) -> str:
    """What this machine can do at most, in one line."""
    return (
        f"ceilings: float32 matrix product {matmul_flops(clock) / 1e9:.0f} GFLOP/s, memory copy "
        f"{copied_bytes(clock) / 1e9:.1f} GB/s ({torch.get_num_threads()} threads), JPEG of 640 × 480 "
        f"{jpeg_images(clock):.0f} images/s per core"
    )


def machine() -> str:
    """Hardware, versions, commit and load, in one line."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True)
    return (
        f"{names[0].split(':')[1].strip() if names else platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit.stdout.strip() or 'none'}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
