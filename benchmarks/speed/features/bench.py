"""Feature files: time to open, time of random rows and memory, beside the original's `pickle.load`.

python -m benchmarks.speed.features.bench [--images 50000] [--turns 5] [--no_memory] [--cpu_time]
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Clock, Comparison, machine, peak_gib, table
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features

DIM, CAPTIONS, ROWS = 640, 5, 512
KINDS = {"pickle": "f.pkl", "folder": "f"}


def write(folder: Path, images: int) -> None:
    """The same random features as a pickle and as a folder of shards."""
    embeddings = np.random.default_rng(0).standard_normal((images, DIM), dtype=np.float32)
    names = [str(number) for number in range(images)]
    captions = [tuple(f"caption {k} of photo {name} on a wooden table" for k in range(CAPTIONS)) for name in names]
    for name in KINDS.values():
        write_features(
            folder / name,
            embeddings=embeddings,
            image_ids=names,
            image_paths=names,
            captions=captions,
            meta=FeatureMeta(encoder="benchmark"),
        )


def plain(folder: Path, rows: np.ndarray) -> torch.Tensor:
    """As the original: all of the pickle, then rows by number."""
    with (folder / KINDS["pickle"]).open("rb") as file:
        data = pickle.load(file)
    return data["clip_embedding"][rows]


def ours(folder: Path, kind: str, rows: np.ndarray) -> torch.Tensor:
    """Open either kind, then rows by number."""
    return read_features(str(folder / KINDS[kind])).rows(rows)


def once(read: Callable, *args: Path | str | np.ndarray) -> int:
    """Read once."""
    read(*args)
    return 1


def compare(folder: Path, images: int, turns: int, memory: bool, clock: Clock) -> list[Comparison]:
    """One row for each kind of file: to open it and read 512 random rows; a note tells further rows."""
    write(folder, images)
    rows = np.random.default_rng(1).choice(images, min(ROWS, images), replace=False)
    results = []
    for kind in KINDS:
        torch.testing.assert_close(plain(folder, rows), ours(folder, kind, rows), rtol=0, atol=0)
        result = Comparison(f"features, {images:,} images, {kind}: open, {len(rows)} random rows", "")
        for _ in range(turns):
            result.turn(lambda: once(plain, folder, rows), lambda kind=kind: once(ours, folder, kind, rows), clock)
        opened, start = read_features(str(folder / KINDS[kind])), clock()
        opened.rows(rows)
        result.notes.append(f"same rows; further {len(rows)} rows {(clock() - start) * 1e3:.1f} ms")
        if memory:
            place = ("--folder", str(folder), "--images", str(images))
            sides = ("nothing", "plain", kind)
            sizes = [peak_gib("benchmarks.speed.features.bench", "--one_run", side, *place) for side in sides]
            result.notes.append(f"memory {sizes[1] - sizes[0]:.2f} → {sizes[2] - sizes[0]:.2f} GiB beside torch")
        results.append(result)
    return results


def short() -> list[Comparison]:
    """A small set, for `python -m benchmarks`."""
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), 10_000, 3, False, time.perf_counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with OMP_NUM_THREADS=1")
    parser.add_argument("--one_run", choices=("nothing", "plain", *KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_run:
        rows = np.arange(0, args.images, max(1, args.images // ROWS))
        if args.one_run == "plain":
            plain(args.folder, rows)
        elif args.one_run != "nothing":
            ours(args.folder, args.one_run, rows)
        return
    print(machine(), flush=True)
    clock = time.process_time if args.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        print(table(compare(Path(folder), args.images, args.turns, not args.no_memory, clock)))


if __name__ == "__main__":
    main()
