"""The same training with 1, 2 and 4 processes: losses, the captions seen, the final weights.

python -m benchmarks.speed.scale.processes [--world 1 2 4] [--folder DIR]

A mapper and the bundled language model, all of it trained, without dropout, on captions of drawn plates in a feature
folder; `--bs` is such that a step is 24 captions in all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from benchmarks.measure import REPO, machine
from clipcap.demo.plates import captions, scenes
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.models.base import IGNORE
from clipcap.training.caption_task import CaptionTask
from clipcap.training.config import TrainConfig
from clipcap.training.dataset import Batch
from clipcap.training.loop import Loop
from clipcap.training.train import train

IMAGES, STEP, EPOCHS = 40, 24, 3


def write_set(folder: Path) -> Path:
    """Plates with three to five captions each, and random vectors."""
    texts = [captions(scene)[: 3 + number % 3] for number, scene in enumerate(islice(scenes(), IMAGES))]
    names = [str(number) for number in range(IMAGES)]
    vectors = np.random.default_rng(0).standard_normal((IMAGES, 512)).astype(np.float32)
    write_features(folder, embeddings=vectors, image_ids=names, image_paths=names, captions=texts, meta=FeatureMeta())
    return folder


def one_process(config: TrainConfig, log: Path) -> None:
    """A process of a run, which notes the captions that it learns from and the loss of each step."""
    windows, step, losses = CaptionTask.windows, Loop._step, []

    def noted(self: CaptionTask, epoch: int, skip: int) -> Iterator[list[Batch]]:
        for window in windows(self, epoch, skip):
            for batch in window:
                if (batch.labels != IGNORE).any():
                    seen.write(json.dumps([epoch, batch.captions.tolist()]) + "\n")
            yield window

    def measured(self: Loop, window: list[Batch]) -> tuple[float, float]:
        loss, weight = step(self, window)
        losses.append(loss / weight)
        return loss, weight

    CaptionTask.windows, Loop._step = noted, measured
    with log.with_name(f"seen-{os.environ.get('RANK', 0)}.jsonl").open("w", encoding="utf-8") as seen:
        train(config)
    log.with_name(f"losses-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(losses), encoding="utf-8")


def run(data: Path, world: int, folder: Path) -> dict:
    """A run of so many processes: what was seen in each epoch, the losses, the weights."""
    out = folder / f"world-{world}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    words = ["-m", "benchmarks.speed.scale.processes", "--process", str(data), str(out), "--bs", str(STEP // world)]
    out.mkdir()
    done = subprocess.run(
        [*command, *words], cwd=REPO, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, text=True, capture_output=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    lines = [json.loads(line) for path in out.glob("seen-*.jsonl") for line in path.read_text().splitlines()]
    seen = [Counter(n for epoch, numbers in lines for n in numbers if epoch == e) for e in range(EPOCHS)]
    return {
        "seen": seen,
        "losses": np.array(json.loads((out / "losses-0.json").read_text())),
        "weights": load_file(out / "run" / "clipcap-last" / "model.safetensors"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "clipcap-processes")
    parser.add_argument("--process", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bs", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process:
        data, out = args.process
        options = {"prefix_length": 4, "dropout": False, "lr": 1e-3, "warmup_steps": 0, "bs": args.bs}
        config = TrainConfig.of(data=str(data), out_dir=str(out / "run"), lm="demo", epochs=EPOCHS, **options)
        return one_process(config, out / "log")
    print(machine())
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    data = write_set(args.folder / "features")
    first = None
    for world in args.world:
        found = run(data, world, args.folder)
        first = first or found
        once = all(set(seen.values()) == {1} and seen.keys() == first["seen"][0].keys() for seen in found["seen"])
        loss = np.abs(found["losses"] - first["losses"]).max()
        weight = max(np.abs(found["weights"][n] - w).max() for n, w in first["weights"].items())
        moved = max(np.abs(w).max() for w in first["weights"].values())
        steps, losses = len(found["losses"]), found["losses"]
        print(
            f"{world} processes: {steps} steps, loss {losses[0]:.6f} → {losses[-1]:.6f}, "
            f"largest difference of a loss {loss:.1e}, of a weight {weight:.1e} (largest weight {moved:.2f}); "
            f"each of {len(found['seen'][0])} captions once in each of {EPOCHS} epochs: {once}",
            flush=True,
        )
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
