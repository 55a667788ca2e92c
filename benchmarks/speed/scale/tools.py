"""`clipcap features` and `--val SHARE` on folders: time and memory against the number of images.

python -m benchmarks.speed.scale.tools [--images 20000 100000] [--width 640] [--shard 10000] [--folder DIR]

The sets are those of `bench.py`. Each command works in a process of its own; memory is the peak of `RssAnon`, less
what that process held before, so that what is left is what the command needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import REPO, machine
from benchmarks.speed.scale.bench import WIDTH, Memory, write_set
from clipcap.features import tools
from clipcap.features.files import read_to_train
from clipcap.features.split import split_features

SHARE, SEED = 0.1, 1


def hold_out(folder: Path) -> None:
    """As `train --val 0.1` does before it begins, once the folder has been opened before."""
    train, val = split_features(read_to_train(folder), SHARE, SEED)
    assert train.num_images > val.num_images > 0
    train.rows([0, train.num_images - 1]), val.rows([0])


def commands(folder: Path) -> dict[str, Callable[[], object]]:
    """What is measured, in this order: later ones use what earlier ones have written beside the folder."""
    parts = [folder.with_name(f"parts_{name}") for name in ("train", "val")]
    return {
        "info": lambda: tools.info(folder),
        "verify": lambda: tools.verify(folder, str),
        "split": lambda: tools.split(folder, 1 - SHARE, SEED, folder.with_name("parts"), str),
        "merge": lambda: tools.merge(parts, folder.with_name("merged"), False, None, str),
        "convert": lambda: tools.convert(folder, folder.with_name("converted"), "float32", None, str),
        "open": lambda: read_to_train(folder),
        "--val 0.1": lambda: hold_out(folder),
    }


def measure(folder: Path, name: str) -> dict[str, float]:
    """Seconds, of the clock and of the processor, and memory of one command, in this process."""
    memory = Memory()
    before = memory.stage()
    clock, cpu = time.perf_counter(), time.process_time()
    kept = commands(folder)[name]()  # noqa: F841
    found = {"s": time.perf_counter() - clock, "cpu_s": time.process_time() - cpu}
    return {**found, "bytes": memory.stage() - before}


def in_a_process(folder: Path, name: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.scale.tools", "--measure", str(folder), name]
    done = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(images: int, shard: int, width: int, root: Path) -> dict[str, dict[str, float]]:
    """All commands on a set of this size; `root` is deleted afterwards."""
    folder = root / "features"
    write_set(folder, images, shard, width)
    try:
        found = {}
        for name in commands(folder):
            found[name] = in_a_process(folder, name)
            print(f"{images:,} {name}: {found[name]}", flush=True)
        return found
    finally:
        shutil.rmtree(root)


def table(found: dict[int, dict[str, dict[str, float]]]) -> str:
    """Seconds and megabytes of each command and size, and what an image more has taken, as Markdown."""
    sizes = list(found)
    head = [f"{n:,}: CPU s | MB" for n in sizes]
    lines = [f"| command | {' | '.join(head)} | bytes an image more |", "| --- " * (2 * len(sizes) + 2) + "|"]
    for name in found[sizes[0]]:
        cells = [f"{found[n][name]['cpu_s']:.2f} | {found[n][name]['bytes'] / 1e6:.1f}" for n in sizes]
        first, last = (found[n][name]["bytes"] for n in (sizes[0], sizes[-1]))
        more = f"{(last - first) / (sizes[-1] - sizes[0]):.1f}" if len(sizes) > 1 else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {more} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[20_000, 100_000])
    parser.add_argument("--width", type=int, default=WIDTH, help="of the embeddings")
    parser.add_argument("--shard", type=int, default=10_000, help="images of a shard; parse writes 100,000")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "clipcap-tools")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(Path(args.measure[0]), args.measure[1])))
    print(machine(), flush=True)
    os.makedirs(args.folder, exist_ok=True)
    found = {n: run(n, args.shard, args.width, args.folder / str(n)) for n in args.images}
    print(table(found))


if __name__ == "__main__":
    main()
