"""Do generated pairs help a small dual encoder? Drawn plates, the product's towers, the mapping in the loop.

python -m benchmarks.quality.synthetic.synthetic [--out runs/synthetic] [--seeds 3] [--steps 400]

Fixed before the first run: 200 real captioned plates of one food, equal steps, half of every batch generated, 1,000
pairs made once from captions of other scenes, prompts worded unlike the cut captions, paired bootstrap over the test
plates, each with the mean of its seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from benchmarks.measure import machine
from clipcap.classification.classifiers import class_vectors
from clipcap.contrastive.config import ContrastiveConfig
from clipcap.contrastive.train import train_contrastive
from clipcap.demo.grammar import captions
from clipcap.demo.latent_scene import CLASSES
from clipcap.demo.plates import draw, scenes
from clipcap.demo.scene import Scene
from clipcap.evaluation.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from clipcap.models.encoders.load import load_encoder
from clipcap.text_to_image.config import SynthesiseConfig
from clipcap.text_to_image.synthesise import synthesise

REAL, CEILING, GENERATED, TEST, SIDE, BATCH, SHARE = 200, 1000, 1000, 500, 32, 64, 0.5
PROMPT, CUT = "a dish with {}", "a {}"
ROWS = (
    "real alone",
    "+ full captions",
    "+ cut captions",
    "+ best half, cut",
    "+ shuffled captions",
    "+ real (ceiling)",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/synthetic"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--report", type=Path, default=None)
    args = parser.parse_args()
    print(machine(), flush=True)
    test = list(islice(one_food("val", 900), TEST))
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {row: [] for row in ROWS}
    for seed in range(args.seeds):
        for row, hits in run_seed(args.out / str(seed), seed, args.steps, test):
            found[row].append(hits)
            print(
                f"seed {seed}  {row}: food {100 * hits[0].mean():.1f} %, R@10 {100 * hits[1].mean():.1f} %",
                flush=True,
            )
    lines = table(found)
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines) + "\n", encoding="utf-8")


def one_food(split: str, seed: int) -> Iterator[Scene]:
    return (scene for scene in scenes(split, seed) if len(scene.facts.foods) == 1)


def write_real(folder: Path, chosen: Sequence[Scene]) -> Path:
    """Plates with all their captions, as a custom set."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number, scene in enumerate(chosen):
            draw(scene, SIDE * 2).save(folder / "images" / f"{number}.png")
            writer.writerows((f"{number}.png", caption) for caption in captions(scene))
    return folder


def shuffled(source: Path, folder: Path, seed: int) -> Path:
    """The generated set with its captions exchanged at random: the case in which pairs do not match."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(source / "captions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = [row["caption"] for row in rows]
    Random(seed).shuffle(texts)
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        places = [str((source / "images" / row["image"]).absolute()) for row in rows]
        writer.writerows(zip(places, texts, strict=True))
    return folder


def run_seed(place: Path, seed: int, steps: int, test: Sequence[Scene]) -> Iterator[tuple[str, tuple]]:
    """(row, hits) of each row of the table."""
    stream = one_food("train", 1000 + seed)
    real = write_real(place / "real", list(islice(stream, REAL)))
    more = write_real(place / "more", list(islice(stream, CEILING)))
    lines = [captions(scene)[0] for scene in islice(stream, GENERATED)]
    (place / "captions.txt").write_text("\n".join(lines), encoding="utf-8")

    def generated(name: str, **options) -> Path:
        common = {"count": GENERATED, "seed": seed, "out": str(place / name), "template": CUT}
        return synthesise(str(place / "captions.txt"), SynthesiseConfig(**common | options))

    first = train(real, None, place / "runs" / "real", seed, steps)
    yield ROWS[0], judge(first, test)
    full, cut = generated("full", captions="full"), generated("cut")
    best = generated("best", count=2 * GENERATED, filter_encoder=str(first / "clip.pt"), keep=0.5)
    sets = (full, cut, best, shuffled(full, place / "shuffled", seed), more)
    for row, extra in zip(ROWS[1:], sets, strict=True):
        yield row, judge(train(real, extra, place / "runs" / extra.name, seed, steps), test)


def train(real: Path, extra: Path | None, out: Path, seed: int, steps: int) -> Path:
    """A small dual encoder, the same number of steps with and without more pairs."""
    share = SHARE if extra else 0.0
    epochs = max(1, round(steps / -(-REAL // round(BATCH * (1 - share)))))
    config = ContrastiveConfig.of(
        data_path=str(real), out_dir=str(out), embed_dim=64, resolution=SIDE, vision_width=16,
        vision_layers="1,1,1,1", text_width=64, text_layers=1, max_seq_length=32, bs=BATCH, epochs=epochs, crop=0.85,
        head_lr=2e-3, image_lr=2e-3, text_lr=2e-3, seed=seed, workers=0, save_every=10_000,
        extra=str(extra) if extra else None, extra_share=share or 0.3,
    )  # fmt: skip
    if not (out / "clip-last" / "clip.pt").exists():
        train_contrastive("custom", config)
    return out / "clip-last"


def judge(folder: Path, test: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """For each test plate: is its food found, is it among the ten nearest to one of its captions?"""
    encoder = load_encoder(str(folder / "clip.pt"), "cpu")
    pictures: list[Image.Image] = [draw(scene, SIDE * 2) for scene in test]
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures])
    images = normalize(torch.cat([encoder.encode_images(part) for part in pixels.split(64)]), dim=1)
    texts = normalize(encoder.encode_texts([captions(scene)[0] for scene in test]), dim=1)
    vectors = class_vectors(encoder, CLASSES, [PROMPT])
    truth = torch.tensor([CLASSES.index(scene.facts.foods[0][0]) for scene in test])
    food = ((images @ vectors.T).argmax(1) == truth).float().numpy()
    scores = texts @ images.T  # [texts, images]
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    return food, (rank < 10).float().numpy()


def plate_means(seeds: Sequence[tuple[np.ndarray, np.ndarray]], part: int) -> np.ndarray:
    """For each test plate the share of seeds that find it: the same plates are judged by all seeds."""
    return np.mean([one[part] for one in seeds], axis=0)


def table(found: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> list[str]:
    """Means over seeds with 95 % intervals over the test plates, and the difference to the first row."""
    head = (
        "training pairs (equal steps)",
        "food top-1 %",
        "− real alone (p)",
        "text → image R@10 %",
        "− real alone (p)",
    )
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    base = [plate_means(found[ROWS[0]], part) for part in (0, 1)]
    for row, seeds in found.items():
        cells = []
        for part in (0, 1):
            hits = plate_means(seeds, part)
            low, high = bootstrap_interval(hits)
            cells.append(f"{100 * hits.mean():.1f} ({100 * low:.1f}–{100 * high:.1f})")
            if row == ROWS[0]:
                cells.append("–")
            else:
                seen = paired_bootstrap(hits, base[part])
                cells.append(f"{100 * seen.difference:+.1f} ({seen.p_value:.3f})")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    by_seed = {row: [[round(float(part.mean()), 4) for part in one] for one in seeds] for row, seeds in found.items()}
    return [*lines, "", "By seed (food, R@10): " + json.dumps(by_seed)]


if __name__ == "__main__":
    main()
