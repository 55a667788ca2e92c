"""Opening features, the first batch, an epoch of batches: time and memory against the size of the set.

python -m benchmarks.scale.bench [--images 200000 1000000 3000000] [--folder DIR] [--out scale.jsonl] [--keep]

Synthetic vectors of 640 float16, five captions each, recombined from real ones. No model: what is measured is the way
from the files to the batches. Memory is `RssAnon`, what the processes hold in anonymous pages, looked at every 10 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np

from benchmarks.measure import REPO, Comparison, machine
from benchmarks.train.bench import CASES, SHARED, captions_of
from clipcap.dataset import CaptionDataset, Parts
from clipcap.features import Content, FeatureMeta, Features, read_to_train, write_parts
from clipcap.features.mapped import blocks
from clipcap.lm import load_tokenizer

WIDTH, EACH, SHARD = 640, 5, 100_000
BATCH = 256  # captions of a step: at 40 the epoch of 15 M captions is 375,000 batches


def texts(count: int, seed: int) -> list[str]:
    """Captions, each the beginning of a real one and the end of another."""
    rng = random.Random(seed)
    words = [text.split() for several in captions_of(CASES["transformer-five"]) for text in several]
    starts, ends = (
        [" ".join(half) for half in halves] for halves in zip(*((w[: len(w) // 2], w[len(w) // 2 :]) for w in words))
    )
    return [f"{start} {end}" for start, end in zip(rng.choices(starts, k=count), rng.choices(ends, k=count))]


def contents(images: int) -> Iterator[Content]:
    """The set, a shard at a time."""
    for part in blocks(images, SHARD):
        rows = part.stop - part.start
        vectors = np.random.default_rng(part.start).standard_normal((rows, WIDTH), np.float32).astype(np.float16)
        captions = texts(rows * EACH, part.start)
        names = [f"{number:09d}" for number in range(part.start, part.stop)]
        yield Content(
            vectors,
            names,
            [f"photos/{n}.jpg" for n in names],
            [captions[i : i + EACH] for i in range(0, len(captions), EACH)],
        )


def tokenizer():
    """GPT-2's where it is at hand, else the bundled one."""
    gpt2 = SHARED / "fixtures" / "gpt2-tokenizer"
    return load_tokenizer(str(gpt2) if gpt2.is_dir() else "demo")


class Memory:
    """Peak of `RssAnon`, in bytes, by stage."""

    def __init__(self) -> None:
        self.peak, self._ended = 0, Event()
        Thread(target=self._watch, daemon=True).start()

    def now(self) -> int:
        """Of this process and at this time."""
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def stage(self) -> int:
        """The peak since the last call."""
        peak, self.peak = max(self.peak, self.now()), 0
        return peak

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.peak = max(self.peak, self.now())


def measure(folder: Path) -> dict[str, float]:
    """Seconds and peak memory of each stage, in this process."""
    words, memory = tokenizer(), Memory()
    found: dict[str, float] = {"start_bytes": memory.stage()}

    def ended(stage: str, start: float) -> None:
        found[f"{stage}_s"], found[f"{stage}_bytes"] = time.perf_counter() - start, memory.stage()

    start = time.perf_counter()
    features = read_to_train(folder)
    ended("open", start)
    start = time.perf_counter()
    data = CaptionDataset(features, words, 67, share_prefix=True)
    ended("tokenise", start)
    parts = Parts(0, 1, BATCH)
    start = time.perf_counter()
    next(data.windows(BATCH, 0, 0, parts))
    ended("first_batch", start)
    start = time.perf_counter()
    found["seen"] = sum(len(batch.captions) for window in data.windows(BATCH, 0, 0, parts) for batch in window)
    ended("epoch", start)
    return {**found, "images": features.num_images, "captions": len(data)}


def in_a_process(folder: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale.bench", "--measure", str(folder)]
    done = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(images: int, folder: Path, keep: bool) -> list[dict]:
    """A set of this size: opened for the first time, and again."""
    place = folder / f"features-{images}"
    if not place.is_dir():
        write_parts(place, contents(images), FeatureMeta(encoder="RN50x4", dtype="float16", source="synthetic"))
    shutil.rmtree(place / "cache", ignore_errors=True)
    try:
        return [{"run": run, **in_a_process(place)} for run in ("first", "again")]
    finally:
        if not keep:
            shutil.rmtree(place)


def short() -> list[Comparison]:
    """Tokenising 10,000 captions one by one, as the original does, and as here, for `python -m benchmarks`."""
    words, captions = tokenizer(), texts(10_000, 0)
    names = list(map(str, range(len(captions))))
    features = Features(
        np.zeros((len(captions), 1)),
        captions,
        np.arange(len(captions)),
        names,
        names,
        FeatureMeta(),
        Path("benchmark"),
    )
    result = Comparison("captions → tokens", "≥ 1")
    result.turn(
        lambda: len([words.encode(text) for text in captions]),
        lambda: len(CaptionDataset(features, words, 67)),
    )
    return [result]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", nargs="+", type=int, default=[200_000, 1_000_000, 3_000_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "clipcap-scale")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scale.jsonl"))
    parser.add_argument("--keep", action="store_true", help="leave the sets, 1.5 kB an image, in --folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(args.measure)))
    print(machine(), flush=True)
    os.makedirs(args.folder, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as log:
        for images in args.images:
            for line in run(images, args.folder, args.keep):
                print(json.dumps(line), file=log, flush=True)
                print(line, flush=True)


if __name__ == "__main__":
    main()
