"""Cost of a caption against the images that are decoded together.

python -m benchmarks.speed.decode.plot
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.measure import machine
from benchmarks.speed.decode.bench import CASES, Bench

SIZES = (1, 2, 4, 8, 16, 32)


def main() -> None:
    print(machine())
    for name in ("beam-40", "sample-40"):
        bench, costs = Bench(replace(CASES[name], images=SIZES[-1])), []
        everything = bench.embeddings
        for size in SIZES:
            bench.embeddings, bench.case = everything[:size], replace(bench.case, images=size)
            bench.ours()
            start = time.perf_counter()
            bench.ours()
            costs.append((time.perf_counter() - start) / size)
            print(f"{name}, {size} images: {costs[-1]:.3f} s a caption", flush=True)
        plt.loglog(SIZES, costs, marker="o", label=CASES[name].title.removesuffix(", one image"))
    plt.xticks(SIZES, map(str, SIZES))
    plt.xlabel("images decoded together")
    plt.ylabel("seconds per caption")
    plt.legend()
    plt.savefig(Path(__file__).with_name("cost.png"), dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
