"""Whether the bundled CLIP's vector holds every food of a plate: probes for the count of each food, without GPT-2.

python -m benchmarks.quality.demo.probes --demo demo_out
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import machine
from clipcap.demo.plates import scenes
from clipcap.demo.run import TRAIN_PICTURES, TRAIN_SEED, VAL_PICTURES, VAL_SEED
from clipcap.demo.scene import FOODS, Scene
from clipcap.features.files import read_features

MOST = 4  # pieces of one food on a plate
HIDDEN, STEPS, BATCH, RATE, DECAY = 512, 3000, 256, 1e-3, 1e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="folder that `clipcap demo` made")
    demo = parser.parse_args().demo
    print(machine())
    train, train_counts, _ = split(demo, "train", TRAIN_SEED, TRAIN_PICTURES)
    val, val_counts, drawn = split(demo, "val", VAL_SEED, VAL_PICTURES)
    mean, deviation = train.mean(dim=0), train.std(dim=0)
    train, val = ((x - mean) / deviation for x in (train, val))
    outputs = len(FOODS) * (MOST + 1)
    probes = {
        "linear": nn.Linear(train.shape[1], outputs),
        f"MLP {HIDDEN}": nn.Sequential(nn.Linear(train.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)),
    }
    print("| probe | plates | all foods right | foods and counts right |\n| --- | --- | --- | --- |")
    for name, probe in probes.items():
        fit(probe, train, train_counts)
        with torch.inference_mode():
            found = probe(val).unflatten(1, (len(FOODS), MOST + 1)).argmax(dim=2)  # [N, foods]
        foods = ((found > 0) == (val_counts > 0)).all(dim=1)  # [N]
        counts = (found == val_counts).all(dim=1)
        for kind, several in (("one food", False), ("two or more", True)):
            rows = torch.tensor([(len(scene.facts.foods) > 1) == several for scene in drawn])
            print(f"| {name} | {kind} ({int(rows.sum())}) | {foods[rows].float().mean():.0%} | "
                  f"{counts[rows].float().mean():.0%} |", flush=True)  # fmt: skip


def split(demo: Path, name: str, seed: int, pictures: int) -> tuple[Tensor, Tensor, Sequence[Scene]]:
    """The vectors [N, D] of a set, the number of each food [N, foods] and the scenes, in the order of a set."""
    features = read_features(str(demo / f"plates_{name}.pkl"))
    drawn = list(islice(scenes("train" if name == "train" else "val", seed), pictures))
    ordered = [drawn[int(i)] for i in features.image_ids]
    names = sorted(FOODS)
    counts = torch.zeros(len(ordered), len(names), dtype=torch.long)
    for row, scene in enumerate(ordered):
        for food, count in scene.facts.foods:
            counts[row, names.index(food)] = min(MOST, count or 1)
    return features.rows(slice(None)).float(), counts, ordered


def fit(probe: nn.Module, vectors: Tensor, counts: Tensor) -> None:
    """Train a probe by cross-entropy over the number of each food."""
    torch.manual_seed(0)
    for layer in (part for part in probe.modules() if isinstance(part, nn.Linear)):
        layer.reset_parameters()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(vectors), (BATCH,))
        scores = probe(vectors[rows]).unflatten(1, (len(FOODS), MOST + 1))  # [B, foods, counts]
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), counts[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    main()
