"""Seconds of `predict.py` against the number of photos: what starting costs, and what each photo adds.

python -m benchmarks.speed.startup.plot
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt

from benchmarks.measure import machine
from benchmarks.speed.startup.bench import LANGUAGE_MODEL, PHOTO, TORCH, python

PHOTOS, TURNS = (1, 8, 32), 1


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        for number in range(max(PHOTOS)):
            shutil.copy(PHOTO, Path(name) / f"{number:02d}.jpg")
        photos = sorted(map(str, Path(name).iterdir()))
        seconds = [taken("predict.py", "--img", *photos[:count]) for count in PHOTOS]
    for count, taken_s in zip(PHOTOS, seconds):
        print(f"{count} photos: {taken_s:.2f} s")
    plt.plot(PHOTOS, seconds, marker="o", label="predict.py, bundled model")
    for bare in (TORCH, LANGUAGE_MODEL):
        plt.axhline(taken("-c", bare), linestyle="--", color="grey" if bare == TORCH else "black", label=bare)
    plt.xlabel("photos")
    plt.ylabel("seconds")
    plt.ylim(bottom=0)
    plt.legend()
    plt.savefig(Path(__file__).with_name("cost.png"), dpi=100, bbox_inches="tight")


def taken(*words: str) -> float:
    """Median seconds of a new Python that does this."""
    times = []
    for _ in range(TURNS + 1):  # the first one warms up
        start = time.perf_counter()
        python(*words)
        times.append(time.perf_counter() - start)
    return median(times[1:])


if __name__ == "__main__":
    main()
