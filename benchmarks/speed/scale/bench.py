"""Opening features, the first batch, an epoch of batches: time and memory against the size of the set.

python -m benchmarks.speed.scale.bench [--images 200000 1000000 3000000] [--folder DIR] [--out scale.jsonl] [--keep]

Synthetic vectors of 640 float16, five captions each, recombined from real ones. No model: what is measured is the way
from the files to the batches. Memory is `RssAnon`, what the processes hold in anonymous pages, looked at every 10 ms.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from benchmarks.measure import REPO, Comparison, machine
from benchmarks.speed.train.bench import CASES, SHARED, captions_of
from clipcap.features.feature_set import FeatureMeta, Features
from clipcap.features.files import read_to_train
from clipcap.models.language_model import load_tokenizer
from clipcap.runtime.disk_arrays import blocks
from clipcap.training.dataset import BatchShare, CaptionDataset

WIDTH, EACH, SHARD = 640, 5, 100_000
POOL = 1000  # different vectors in a shard: drawing them all would take longer than all the rest
BATCH = 256  # captions of a step: at 40 the epoch of 15 M captions is 375,000 batches


def texts(count: int, seed: int) -> pa.Array:
    """Captions, each the beginning of a real one and the end of another."""
    rng = np.random.default_rng(seed)
    words = [text.split() for several in captions_of(CASES["transformer-five"]) for text in several]
    halves = ([" ".join(w[: len(w) // 2]) for w in words], [" ".join(w[len(w) // 2 :]) for w in words])
    chosen = (pa.array(half).take(pa.array(rng.integers(len(words), size=count))) for half in halves)
    return pc.binary_join_element_wise(*chosen, " ")


def write_set(place: Path, images: int, shard: int = SHARD, width: int = WIDTH) -> None:
    """The folder, a shard at a time, in the layout of `clipcap.features.folder`."""
    for name in ("img_emb", "metadata"):
        (place / name).mkdir(parents=True)
    for number, part in enumerate(blocks(images, shard)):
        rows, rng = part.stop - part.start, np.random.default_rng(part.start)
        pool = rng.standard_normal((POOL, width), np.float32).astype(np.float16)
        np.save(place / "img_emb" / f"img_emb_{number}.npy", pool[rng.integers(POOL, size=rows)])
        captions = texts(rows * EACH, part.start)
        ids = pc.utf8_lpad(pa.array(range(part.start, part.stop)).cast(pa.string()), 9, "0")
        columns = {
            "image_id": ids,
            "image_path": pc.binary_join_element_wise("photos/", ids, ".jpg", ""),
            "caption": captions.take(pa.array(range(0, rows * EACH, EACH))),
            "captions": pa.ListArray.from_arrays(pa.array(range(0, rows * EACH + 1, EACH), pa.int32()), captions),
        }
        pq.write_table(pa.table(columns), place / "metadata" / f"metadata_{number}.parquet")
    meta = FeatureMeta(encoder="RN50x4", source="synthetic", dtype="float16")
    (place / "clipcap.json").write_text(json.dumps(asdict(meta)), encoding="utf-8")


def tokenizer() -> PreTrainedTokenizerBase:
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


def measure(folder: Path, epoch: bool) -> dict[str, float]:
    """Seconds, of the clock and of the processor, and peak memory of each stage, in this process."""
    words, memory = tokenizer(), Memory()
    found: dict[str, float] = {"start_bytes": memory.stage()}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        clock, cpu = time.perf_counter(), time.process_time()
        yield
        found[f"{name}_s"], found[f"{name}_cpu_s"] = time.perf_counter() - clock, time.process_time() - cpu
        found[f"{name}_bytes"] = memory.stage()

    with stage("open"):
        features = read_to_train(folder)
    with stage("tokens"):
        data = CaptionDataset(features, words, 67, share_prefix=True)
    parts = BatchShare(0, 1, BATCH)
    with stage("first_batch"):
        next(data.windows(BATCH, 0, 0, parts))
    if epoch:
        with stage("epoch"):
            windows = data.windows(BATCH, 0, 0, parts)
            found["seen"] = sum(len(batch.captions) for window in windows for batch in window)
    return {**found, "images": features.num_images, "captions": len(data)}


def in_a_process(folder: Path, epoch: bool) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.scale.bench", "--measure", str(folder), *["--epoch"] * epoch]
    done = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(images: int, folder: Path, keep: bool) -> list[dict]:
    """A set of this size: opened for the first time, and again, then with an epoch of batches."""
    place = folder / f"features-{images}"
    if not place.is_dir():
        write_set(place, images)
    shutil.rmtree(place / "cache", ignore_errors=True)
    try:
        return [{"run": run, **in_a_process(place, epoch=run == "again")} for run in ("first", "again")]
    finally:
        if not keep:
            shutil.rmtree(place)


def short() -> list[Comparison]:
    """Tokenising 10,000 captions one by one, as the original does, and as here, for `python -m benchmarks`."""
    words, captions = tokenizer(), texts(10_000, 0).to_pylist()
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
    parser.add_argument("--epoch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(args.measure, args.epoch)))
    print(machine(), flush=True)
    os.makedirs(args.folder, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as log:
        for images in args.images:
            for line in run(images, args.folder, args.keep):
                print(json.dumps(line), file=log, flush=True)
                print(line, flush=True)


if __name__ == "__main__":
    main()
