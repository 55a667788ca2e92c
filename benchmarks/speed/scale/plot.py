"""Memory and time of opening and going through a set against its size, from the figures of `bench.py`.

python -m benchmarks.speed.scale.plot [scale.jsonl]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

STAGES = {"open": "open", "tokens": "tokens", "first_batch": "first batch", "epoch": "an epoch of batches"}
RUNS = {"first": "the first time", "again": "again"}


def main() -> None:
    file = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("scale.jsonl"))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    _, (memory, clock) = plt.subplots(1, 2, figsize=(11, 4))
    for run, when in RUNS.items():
        mine = sorted((line for line in lines if line["run"] == run), key=lambda line: line["captions"])
        for stage, name in STAGES.items():
            points = [line for line in mine if f"{stage}_bytes" in line]
            if not points:
                continue
            sizes = [line["captions"] / 1e6 for line in points]
            style = {"marker": "o", "label": f"{name}, {when}", "linestyle": "-" if run == "again" else "--"}
            memory.plot(sizes, [line[f"{stage}_bytes"] / 1e6 for line in points], **style)
            clock.plot(sizes, [line[f"{stage}_cpu_s"] for line in points], **style)
    largest = max(line["captions"] for line in lines) / 1e6
    base = min(line["start_bytes"] for line in lines) / 1e6
    memory.plot([0, largest], [base, base + 8 * largest], color="grey", linestyle=":", label="8 bytes a caption")
    memory.set_ylabel("peak RssAnon, MB")
    clock.set_ylabel("processor seconds")
    clock.set_xscale("log"), clock.set_yscale("log")
    for axes in (memory, clock):
        axes.set_xlabel("million captions")
        axes.grid(alpha=0.3)
    memory.set_ylim(bottom=0)
    memory.legend(fontsize=7)
    plt.savefig(file.with_suffix(".png"), dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
