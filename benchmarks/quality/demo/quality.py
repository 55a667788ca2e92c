"""What the demo's captioner gets right on unseen combinations, beside three baselines that do not look.

python -m benchmarks.quality.demo.quality --demo demo_out
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine
from benchmarks.quality.baselines import nearest
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.cli.main import main as clipcap
from clipcap.demo.facts import table
from clipcap.demo.plates import scenes
from clipcap.demo.run import TRAIN_SEED, TRAINING, VAL_PICTURES, VAL_SEED
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.evaluation.metrics.score import Scores, score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features, write_features
from clipcap.images.grid import picture_grid
from clipcap.runtime.bundled import DEMO

SHOWN = ("BLEU-4", "CIDEr-D")
SHOWN_PICTURES = 8  # in bundled.jpg, the first of the held-out ones
DRAWN = 40
BUNDLED, TRAINED = "bundled captioner", "captioner of the demo run"
COMMON, SHUFFLED = "most common caption", "captioner of shuffled features"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="folder that `clipcap demo` made")
    demo = parser.parse_args().demo
    print(machine())
    training, held_out = (read_features(str(demo / f"plates_{name}.pkl")) for name in ("train", "val"))
    references = captions_by_image(held_out)
    order = [references[str(i)] for i in range(VAL_PICTURES)]
    drawn = list(islice(scenes("val", VAL_SEED), VAL_PICTURES))
    seen = {scene.facts for scene in islice(scenes("train", TRAIN_SEED), training.num_images)}
    print(f"combinations of the held-out pictures that training shows: {len({s.facts for s in drawn} & seen)}")
    closest = dict(zip(map(str, held_out.image_ids), nearest(training, held_out), strict=True))
    runs = {
        BUNDLED: written(DEMO, held_out),
        TRAINED: written(demo / "checkpoints", held_out),
        COMMON: [most_common(training)] * VAL_PICTURES,
        "nearest training picture": [closest[str(i)] for i in range(VAL_PICTURES)],
        SHUFFLED: written(shuffled(training, demo), held_out),
    }
    pictures = [demo / "plates_val" / "dataset" / f"{number}.jpg" for number in range(SHOWN_PICTURES)]
    picture_grid(pictures, runs[BUNDLED][:SHOWN_PICTURES], columns=4).save(demo / "bundled.jpg", quality=88)
    scores = {name: score(captions, order, with_java=False) for name, captions in runs.items()}
    for name, captions in runs.items():
        report(name, scores[name], table(captions, drawn))
    for model, other in product((BUNDLED, TRAINED), list(runs)[2:]):
        outcome = scores[model].compare(scores[other], "CIDEr-D", n=10_000)
        print(f"{model} against {other}: CIDEr-D {outcome.difference:+.3f} "
              f"[{outcome.low:+.3f}, {outcome.high:+.3f}], p {outcome.p_value:.4f}")  # fmt: skip
    say_constants(training, order)


def written(checkpoint: str | Path, held_out: Features) -> list[str]:
    rows = held_out.rows(np.arange(held_out.num_images))  # [N, D]
    return in_order(Captioner.from_pretrained(checkpoint), list(rows), held_out)


def in_order(captioner: Captioner, stored: list[Any], held_out: Features) -> list[str]:
    """The best caption of what is stored of each plate, in the order of the plates."""
    found = captioner.caption(stored, DecodeConfig(beam=True))
    by_image = {str(i): several[0].text for i, several in zip(held_out.image_ids, found)}
    return [by_image[str(i)] for i in range(VAL_PICTURES)]


def most_common(training: Features) -> str:
    return Counter(training.captions).most_common(1)[0][0]


def say_constants(training: Features, references: list[list[str]]) -> None:
    """CIDEr-D of one caption for every picture: of all that are the most common, and of some drawn at random."""
    counts = Counter(training.captions)
    tied = [caption for caption, count in counts.items() if count == max(counts.values())]
    drawn = np.random.default_rng(0).choice(len(training.captions), DRAWN, replace=False)
    some = [training.captions[i] for i in drawn.tolist()]
    of_tied, of_some = (
        [score([text] * len(references), references, with_java=False).corpus["CIDEr-D"] for text in texts]
        for texts in (tied[:DRAWN], some)
    )
    print(f"{len(tied)} captions of {len(training.captions)} are the most common, {max(counts.values())} times each; "
          f"CIDEr-D, said of every picture: {', '.join(f'{value:.3f}' for value in of_tied)}")  # fmt: skip
    low, middle, high = np.percentile(of_some, [5, 50, 95])
    print(f"{DRAWN} captions drawn at random: median {middle:.3f}, nine of ten from {low:.3f} to {high:.3f}")


def shuffled(training: Features, demo: Path) -> Path:
    """A captioner trained as the demo's, each picture's embedding given to another picture."""
    path, out = demo / "shuffled.pkl", demo / "checkpoints_shuffled"
    if out.exists():
        return out
    rows = training.rows(np.random.default_rng(0).permutation(training.num_images))
    captions = [[] for _ in range(training.num_images)]
    for caption, row in zip(training.captions, training.caption_rows.tolist()):
        captions[row].append(caption)
    write_features(path, embeddings=rows.numpy(), image_ids=list(training.image_ids),
                   image_paths=[None] * len(captions), captions=captions,
                   meta=replace(training.meta, source="shuffled"))  # fmt: skip
    clipcap(["train", "--data", str(path), "--out_dir", str(out), *TRAINING])
    return out


def report(name: str, scores: Scores, facts: dict) -> None:
    print(f"\n{name}")
    for metric in SHOWN:
        low, high = scores.interval(metric)
        print(f"  {metric:8} {scores.corpus[metric]:.3f} [{low:.3f}, {high:.3f}]")
    for kind, shares in facts.items():
        print(f"  {kind:13}" + " ".join(f"{aspect} {share:.3f}" for aspect, share in shares.items()))


if __name__ == "__main__":
    main()
