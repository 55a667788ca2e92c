"""Cost of a caption against the captions per image and per step: plain, ours apart, ours sharing prefixes.

python -m benchmarks.speed.train.plot
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.measure import machine
from benchmarks.speed.train.bench import CASES, Bench
from clipcap.training.dataset import CaptionDataset

TURNS = 3
IMAGES, PER_IMAGE = 4, (1, 2, 3, 4, 5)
PER_STEP = (1, 2, 4, 8, 16, 40)
MOST_OF_PLAIN = 16  # captions in a step; it needs a quarter of a GiB for each

Cost = dict[str, list[float]]  # seconds per caption of each kind, at each size


def against_captions_per_image() -> Cost:
    """The same images with one caption each, with two, and so on."""
    bench = Bench(CASES["transformer-five"])
    shared = bench.data
    sides = {
        "ours, apart": CaptionDataset(shared.features, shared.tokenizer, 900),
        "ours, sharing the prefix": shared,
    }
    costs: Cost = {name: [] for name in sides}
    for count in PER_IMAGE:
        captions = np.flatnonzero((np.arange(len(shared)) % 5 < count) & (shared.features.caption_rows < IMAGES))
        for name, data in sides.items():
            bench.data = data
            costs[name].append(seconds(lambda captions=captions: bench.ours([captions])))
        print(f"{count} per image:", *(f"{name} {values[-1]:.3f} s" for name, values in costs.items()), flush=True)
    return costs


def against_captions_per_step() -> Cost:
    """Captions of middling length, each of another image."""
    bench = Bench(CASES["transformer-40"])
    middling = bench.steps(1)[0]
    costs: Cost = {"plain": [], "ours": []}
    for count in PER_STEP:
        captions = middling[:count]
        costs["ours"].append(seconds(lambda captions=captions: bench.ours([captions])))
        if count <= MOST_OF_PLAIN:
            costs["plain"].append(seconds(lambda captions=captions: bench.plain(captions), turns=1))
        print(f"{count} per step:", *(f"{name} {values[-1]:.3f} s" for name, values in costs.items()), flush=True)
    return costs


def seconds(work: Callable[[], int], turns: int = TURNS) -> float:
    """Median seconds per caption; `work` returns how many it did."""
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        done = work()
        times.append((time.perf_counter() - start) / done)
    return median(times)


def main() -> None:
    print(machine(), flush=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for axes, sizes, costs, label in (
        (left, PER_IMAGE, against_captions_per_image(), "captions per image (Flickr8k)"),
        (right, PER_STEP, against_captions_per_step(), "captions per step (food)"),
    ):
        for name, values in costs.items():
            axes.plot(sizes[: len(values)], values, marker="o", label=name)
        axes.set_xlabel(label)
        axes.set_ylabel("seconds per caption")
        axes.set_xticks(sizes)
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(Path(__file__).with_name("cost.png"), dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
