"""Cost of encoding an image against the images of a call, on one thread.

python -m benchmarks.speed.parse.plot [--encoder ViT-B/32 RN50x4]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from benchmarks.measure import machine
from benchmarks.speed.parse.bench import SIZES, random_weights
from clipcap.models.encoders.load import load_encoder

TOGETHER = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", nargs="+", choices=SIZES, default=list(SIZES))
    names = parser.parse_args().encoder
    torch.set_num_threads(1)
    print(machine())
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            encoder = load_encoder(str(random_weights(name, Path(folder))), "cpu")
        costs = []
        for count in TOGETHER:
            pixels = torch.randn(count, 3, SIZES[name][1], SIZES[name][1])
            encoder.encode_images(pixels)
            start = time.perf_counter()
            encoder.encode_images(pixels)
            costs.append((time.perf_counter() - start) / count * 1e3)
            print(f"{name}, {count} images: {costs[-1]:.0f} ms an image", flush=True)
        plt.semilogx(TOGETHER, costs, marker="o", label=name)
    plt.xticks(TOGETHER, map(str, TOGETHER))
    plt.xlabel("images of a call")
    plt.ylabel("milliseconds per image, one thread")
    plt.ylim(bottom=0)
    plt.legend()
    plt.savefig(Path(__file__).with_name("cost.png"), dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
