"""Retrieval: exact search from disk beside faiss's exact search in memory, and faiss's approximate indexes.

python -m benchmarks.speed.retrieval.bench --folder FOLDER [--rows 1000000] [--kind ivf hnsw] [--turns 5] [--cpu_time]
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from pathlib import Path
from queue import Queue
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.measure import REPO, Clock, Comparison, machine, table
from benchmarks.speed.retrieval.points import DIM, queries, write_set
from clipcap.retrieval.build import build_index
from clipcap.retrieval.config import IndexConfig
from clipcap.retrieval.index import Index
from clipcap.runtime.messages import logger

K = 10
MB = 2**20


def anonymous() -> int:
    """Memory of this process that no file stands behind, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def growth() -> Iterator[dict[str, float]]:
    """Fills in by how many MiB anonymous memory grew at most; looks every 2 ms."""
    torch.randn(256, DIM) @ torch.randn(DIM, 4096)  # memory and threads of torch's own
    before, over, found = anonymous(), threading.Event(), {"mib": 0.0}

    def watch() -> None:
        while not over.wait(0.002):
            found["mib"] = max(found["mib"], (anonymous() - before) / MB)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def flat(folder: Path) -> Any:
    """The plain baseline: faiss's IndexFlatIP of all rows, normalised, in memory."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(DIM)
    for path in sorted(
        (folder / "features" / "img_emb").glob("*.npy"), key=lambda path: int(path.stem.split("_")[-1])
    ):
        rows = np.load(path).astype(np.float32)
        faiss.normalize_L2(rows)
        index.add(rows)
    return index


def compare(folder: Path, turns: int, clock: Clock = time.perf_counter) -> list[Comparison]:
    """Exact search, one query and a hundred at once: both find the same."""
    ours, plain = Index.open(folder / "exact"), flat(folder)
    found = []
    for count in (1, 100):
        some = queries(count)
        unit = F.normalize(some, dim=1).numpy()
        of_plain, of_ours = plain.search(unit, K)[1], ours.hits(some, K).row.reshape(count, K)
        same = np.mean([len({*a} & {*b}) / K for a, b in zip(of_plain.tolist(), of_ours.tolist())])
        assert same > 0.999, f"faiss finds other rows: {same:.1%} are the same"  # float32 swaps near ties
        result = Comparison(f"exact search, {len(ours):,} × {DIM} float16, {count} at once", "-")
        for _ in range(turns):
            result.turn(lambda unit=unit: len(plain.search(unit, K)[1]), lambda some=some: _asked(ours, some), clock)
        found.append(result)
    return found


def _asked(index: Index, some: torch.Tensor) -> int:
    index.hits(some, K)
    return len(some)


def memory(folder: Path, place: str) -> dict[str, float]:
    """Seconds to open, and growth of memory of one query and then of a hundred at once."""
    some = queries(100)
    unit = F.normalize(some, dim=1).numpy()
    with growth() as found:
        start = time.perf_counter()
        index = flat(folder) if place == "flat" else Index.open(folder / place)
        opened = time.perf_counter() - start
        for count in (1, 100):
            index.search(unit[:count], K) if place == "flat" else index.search(some[:count], K)
            found.setdefault("one", found["mib"])
    return {"opened_s": opened, "one_mib": found["one"], "hundred_mib": found["mib"]}


def build(folder: Path, kind: str) -> dict[str, Any]:
    """`clipcap index --kind KIND`: seconds by the clock and of CPU time, growth of memory, what it says."""
    records: Queue = Queue()
    logger.addHandler(handler := QueueHandler(records))
    logger.setLevel(logging.INFO)
    start, cpu = time.perf_counter(), time.process_time()
    with growth() as found:
        build_index([folder / "features"], IndexConfig(out=str(folder / kind), kind=kind))
    times = {"built_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    logger.removeHandler(handler)
    return {**times, **found, "said": [record.getMessage() for record in records.queue]}


def approximate(folder: Path, kind: str, turns: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Milliseconds per query, one and a hundred at once, and the share of the true 10 nearest of new queries."""
    index, found = Index.open(folder / kind), {}
    for count in (1, 100):
        some = queries(count)
        index.hits(some, K)
        taken = [_seconds(lambda some=some: index.hits(some, K), clock) for _ in range(turns)]
        found[f"ms_{count}"] = 1000 * median(taken) / count
    true, near = index.hits(some, K, exact=True), index.hits(some, K)
    pairs = set(zip(true.query.tolist(), true.row.tolist()))
    return {**found, "recall_10": len(pairs & set(zip(near.query.tolist(), near.row.tolist()))) / len(pairs)}


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start


def apart(*words: object) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.retrieval.bench", *map(str, words)]
    done = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def short() -> list[Comparison]:
    """20,000 rows, for `python -m benchmarks`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder / "features", 20_000)
        build(folder, "exact")
        return compare(folder, turns=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the set and its indexes, 5 KB a row")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", nargs="*", choices=("ivf", "hnsw"), default=["ivf"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with OMP_NUM_THREADS=1")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.absolute()
    if args.alone:
        what, place = args.alone
        print(json.dumps(memory(folder, place) if what == "memory" else build(folder, place)))
        return
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(machine(), flush=True)
    if not (folder / "features").exists():
        write_set(folder / "features", args.rows)
    for kind in ("exact", *args.kind):
        if (folder / kind).exists():
            continue
        print(f"build {kind}: {json.dumps(apart('--folder', folder, '--alone', 'build', kind))}", flush=True)
    for place in ("exact", "features", *args.kind, "flat"):
        print(f"memory {place}: {json.dumps(apart('--folder', folder, '--alone', 'memory', place))}", flush=True)
    for kind in args.kind:
        print(f"search {kind}: {json.dumps(approximate(folder, kind, 4 * args.turns, clock))}", flush=True)
    print(table(compare(folder, args.turns, clock)))
    print(machine())


if __name__ == "__main__":
    main()
