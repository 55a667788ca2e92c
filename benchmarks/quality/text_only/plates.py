"""Text-only training beside paired training on drawn plates, same steps: noise swept, and mixed training.

python -m benchmarks.quality.text_only.plates --demo demo_out [--seeds 1 2 3] [--runs paired auto 0]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from benchmarks.measure import machine
from benchmarks.quality.seeds import compare_seeds, describe
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.demo.grammar import parse
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.evaluation.metrics.score import Scores, score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features, write_features
from clipcap.features.gap import describe_gap, measure_features
from clipcap.features.parse_texts import parse_texts
from clipcap.runtime.bundled import DEMO
from clipcap.training.config import TrainConfig
from clipcap.training.train import train

TITLE = "Recipe:"  # what the other register begins with
FEW = 100  # captioned plates of mixed training
RUNS = ("paired", "auto", "0", "third", "triple", "few", "mixed", "register")
SHOWN = 10  # captions of the other register


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="folder that `clipcap demo` made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="a run of each")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="which")
    parser.add_argument("--held_out", type=Path, help="features of other held-out plates (default: the demo's 240)")
    parser.add_argument("--epochs", type=int, default=2, help="of the paired run; the others take as many steps")
    args = parser.parse_args()
    demo = args.demo
    held_out, training = (read_features(str(demo / f"plates_{name}.pkl")) for name in ("val", "train"))
    judged = read_features(str(args.held_out)) if args.held_out else held_out
    print(machine(), describe_gap(demo / "plates_val.pkl"), f"{judged.num_images} held-out plates", sep="\n")
    texts, few = demo / "texts", demo / "few.pkl"
    if not texts.exists():
        parse_texts(data_path=str(demo / "plates_train.pkl"), clip_model_type=DEMO, out=str(texts))
    if not few.exists():
        write_few(few, training)
    titles = demo / "texts_register"
    if "register" in args.runs and not titles.exists():
        parse_texts(
            data_path=str(write_register(demo / "register.csv", training)), clip_model_type=DEMO, out=str(titles)
        )
    auto = measure_features(held_out).noise(False)
    text = {"objective": "text", "data": str(texts)}
    shortened = {"data": str(few), "epochs": args.epochs * training.num_images // FEW}
    options = {
        "paired": {"data": str(demo / "plates_train.pkl")},
        "auto": text,
        "0": {**text, "noise": "0"},
        "third": {**text, "noise": str(auto / 3)},
        "triple": {**text, "noise": str(auto * 3)},
        "few": {**shortened, "save_every": shortened["epochs"]},
        "mixed": {"objective": "text", "data": (str(few), str(texts))},
        "register": {**text, "data": str(titles), "only_prefix": False, "tune": "full", "lr": 2e-3, "lm_lr": 1e-3},
    }
    results: dict[str, list[Scores]] = {}
    for name in args.runs:
        for seed in args.seeds:
            out = demo / "text_only" / f"{name}_{seed}"
            if not (out / "clipcap-best").exists():
                train(run_config(demo, out, seed, **{"epochs": args.epochs, **options[name]}))
            captions = captions_of(out, judged)
            results.setdefault(name, []).append(found := scores_of(captions, judged))
            if name == "register":
                share = sum(caption.startswith(TITLE) for caption in captions) / len(captions)
                print(f"{share:.0%} in the other register", *captions[:SHOWN], sep="\n  ")
            print(f"{name:8} seed {seed}: CIDEr-D {found.corpus['CIDEr-D']:.3f}", flush=True)
    report(results)


def run_config(demo: Path, out: Path, seed: int, epochs: int, **options: object) -> TrainConfig:
    """A mapper before the bundled language model."""
    fixed = {"val": str(demo / "plates_val.pkl"), "lm": DEMO, "only_prefix": True, "prefix_length": 5}
    loop = {"epochs": epochs, "save_every": epochs, "bs": 32, "lr": 4e-3, "seed": seed, "share_prefix": False}
    return TrainConfig.of(**{**fixed, **loop, "out_dir": str(out), "select": "cider", **options})


def write_few(path: Path, training: Features) -> None:
    """The features of `FEW` of the plates."""
    rows = training.subset_by_row(np.arange(0, training.num_images, training.num_images // FEW))
    write_features(
        path, embeddings=rows.rows(slice(None)), image_ids=list(rows.image_ids),
        image_paths=list(rows.image_paths), captions=rows.captions_by_row(), meta=rows.meta,
    )  # fmt: skip


def write_register(path: Path, training: Features) -> Path:
    """The captions of the plates, every other one of each as the title of a recipe."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for row, captions in enumerate(training.captions_by_row()):
            for number, caption in enumerate(captions):
                foods = " and ".join(food.title() for food, _ in parse(caption).foods)
                writer.writerow([training.image_ids[row], f"{TITLE} {foods}" if number % 2 and foods else caption])
    return path


def captions_of(checkpoint: Path, held_out: Features) -> list[str]:
    """Captions of the held-out plates, by beam search."""
    rows = held_out.rows(np.arange(held_out.num_images))  # [N, D]
    found = Captioner.from_pretrained(checkpoint).caption(list(rows), DecodeConfig(beam=True))
    return [several[0].text for several in found]


def scores_of(captions: list[str], held_out: Features) -> Scores:
    """Scores of captions of the held-out plates."""
    references = captions_by_image(held_out)
    return score(captions, [references[str(i)] for i in held_out.image_ids], with_java=False)


def report(results: dict[str, list[Scores]]) -> None:
    """Each run against `auto`, and `mixed` against `few`, seed by seed and with all seeds."""
    for name, found in results.items():
        values = [scores.corpus["CIDEr-D"] for scores in found]
        line = f"{name:8} CIDEr-D {np.mean(values):.3f} of {len(values)} seeds"
        better, worse = ("mixed", "few") if name == "mixed" else ("auto", name)
        for ours, other in zip(results.get(better, []), results.get(worse, [])):
            if better != worse:
                line += f"; {better} over {worse} {describe(ours.compare(other, 'CIDEr-D'))}"
        if better != worse and better in results and worse in results:
            line += f"; with all seeds {describe(compare_seeds(results[better], results[worse]))}"
        print(line)


if __name__ == "__main__":
    main()
