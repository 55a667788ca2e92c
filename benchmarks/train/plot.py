"""Cost of a caption against the captions per image, computed apart and sharing prefixes.

python -m benchmarks.train.plot
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.measure import machine
from benchmarks.train.bench import CASES, Bench
from clipcap.dataset import CaptionDataset

IMAGES, MOST, TURNS = 4, 5, 3


def main() -> None:
    print(machine())
    bench = Bench(CASES["transformer-five"])
    shared = bench.data
    apart = CaptionDataset(shared.features, shared.tokenizer, 900)
    costs: dict[str, list[float]] = {"apart": [], "sharing the prefix": []}
    for count in range(1, MOST + 1):
        captions = np.flatnonzero((np.arange(len(shared)) % 5 < count) & (shared.features.caption_rows < IMAGES))
        times: dict[str, list[float]] = {name: [] for name in costs}
        for _ in range(TURNS):
            for name, data in zip(costs, (apart, shared), strict=True):
                bench.data = data
                start = time.perf_counter()
                bench.ours([captions])
                times[name].append((time.perf_counter() - start) / len(captions))
        for name, values in times.items():
            costs[name].append(median(values))
        print(count, *(f"{name} {values[-1]:.3f} s" for name, values in costs.items()), flush=True)
    for name, values in costs.items():
        plt.plot(range(1, MOST + 1), values, marker="o", label=name)
    plt.xticks(range(1, MOST + 1))
    plt.xlabel("captions per image")
    plt.ylabel("seconds per caption")
    plt.ylim(bottom=0)
    plt.legend()
    plt.savefig(Path(__file__).with_name("cost.png"), dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
