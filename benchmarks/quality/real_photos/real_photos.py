"""Captions of real photos with really pretrained parts: EfficientNet-Lite0 and SmolLM2-135M on Flickr8k.

python -m benchmarks.quality.real_photos.real_photos [--photos 2000] [--runs none lora] [--out runs/real_photos]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine
from benchmarks.quality.baselines import nearest
from benchmarks.quality.real_photos.pretrained import EfficientNetLite, encode, install, language_model
from benchmarks.speed.train.bench import SHARED
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.cli.main import main as clipcap
from clipcap.evaluation.caption_files import captions_by_image, read_predictions
from clipcap.evaluation.evaluate import PREDICTIONS, REPORT
from clipcap.evaluation.metrics.score import Scores, distinct_share, score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features, write_features
from clipcap.scoring.cider_reward import bad_endings

FLICKR8K, STORED = SHARED / "data" / "flickr8k", SHARED / "features"
METRICS = ("CIDEr-D", "BLEU-4", "METEOR")
TOKENS = ["--mapping_type", "transformer", "--num_layers", "2"]
RUNS = {
    "none": ("vector, mapper only", ["--tune", "none"]),
    "lora": ("vector + LoRA", ["--tune", "lora", "--lora_rank", "16"]),
    "full": ("vector, language model tuned", ["--tune", "full"]),
    "tokens_none": ("tokens, mapper only", [*TOKENS, "--tune", "none"]),
    "tokens_lora": ("tokens + LoRA", [*TOKENS, "--tune", "lora", "--lora_rank", "16"]),
    "tokens_full": ("tokens, language model tuned", [*TOKENS, "--tune", "full"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000, help="to train on")
    parser.add_argument("--dev", type=int, default=500, help="photos held out")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=["none", "lora"], help="what is trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--lm", help="another language model in place of SmolLM2")
    parser.add_argument("--train_flags", default="", help="further flags of `clipcap train`, in one word")
    parser.add_argument("--encode", action="store_true", help="encode the photos, though their vectors are stored")
    parser.add_argument("--bfloat16", action="store_true", help="train in bfloat16, where the processor has it")
    parser.add_argument("--no_java", action="store_true", help="without METEOR")
    parser.add_argument("--out", type=Path, default=Path("runs/real_photos"))
    args = parser.parse_args()
    if not FLICKR8K.is_dir():
        parser.exit(1, f"{FLICKR8K}: no such folder; set CLIPCAP_SHARED to the folder that holds data/flickr8k\n")
    print(machine(), flush=True)
    out: Path = args.out
    install(out / "packages")
    lm = args.lm or language_model(out / "packages", out / "smollm2")
    tokens = any(run.startswith("tokens") for run in args.runs)
    train, dev = features(out, args.photos, args.dev, args.encode or tokens, tokens)
    held_out = read_features(str(dev))
    references = captions_by_image(held_out)
    order = [references[str(i)] for i in held_out.image_ids]
    training = read_features(str(train))
    baselines = {
        "most common caption": [Counter(training.captions).most_common(1)[0][0]] * len(order),
        f"nearest of {training.num_images:,} training photos": nearest(training, held_out),
    }
    print(f"| captions of | {' | '.join(METRICS)} | distinct | words | bad endings | minutes |\n{'| --- ' * 8}|")
    found: dict[str, Scores] = {}
    for name, captions in baselines.items():
        found[name] = report(name, captions, order, not args.no_java, 0)
    for run in args.runs:
        for seed in args.seeds:
            words = [*RUNS[run][1], *args.train_flags.split(), "--seed", str(seed)]
            folder = out / f"{run}_{args.photos}_{seed}"
            minutes = trained(train, dev, lm, words, folder, args.bfloat16)
            captions = evaluated(folder, dev, train, held_out)
            name = f"{RUNS[run][0]}, seed {seed}"
            found[name] = report(name, captions, order, not args.no_java, minutes)
            if run.startswith("tokens"):
                captions = captioned_by_others(folder, held_out)
                found[f"{name}, of other photos"] = report(f"{name}, of other photos", captions, order, False, 0)
    compare(found)


def features(out: Path, photos: int, held_out: int, anew: bool, tokens: bool) -> tuple[Path, Path]:
    """Feature files to train on and to validate on, with the places of the photos for the reports."""
    kind = "_tokens" if tokens else ""
    paths = {split: out / f"{split}_{count}{kind}" for split, count in (("train", photos), ("dev", held_out))}
    for (split, path), name in zip(paths.items(), ("train", "val"), strict=True):
        count = photos if split == "train" else held_out
        if anew:
            encode(FLICKR8K, split, count, path, tokens)
        elif not path.is_dir():
            stored = read_features(str(STORED / f"flickr8k_{name}_efficientnet_lite0.pkl"))
            some = stored.subset_by_row(np.arange(min(stored.num_images, count)))
            write_features(
                path, embeddings=some.rows(slice(None)).half(), image_ids=list(some.image_ids),
                image_paths=[str(FLICKR8K / "Images" / i) for i in some.image_ids], captions=some.captions_by_row(),
                meta=replace(some.meta, encoder="import:efficientnet-lite0"),
            )  # fmt: skip
    if not anew:
        check_stored(paths["dev"])
    return paths["train"], paths["dev"]


def check_stored(dev: Path) -> None:
    """The stored vectors are those that the network gives for the photos."""
    some = read_features(str(dev))
    vectors, _ = EfficientNetLite()([FLICKR8K / "Images" / name for name in some.image_ids[:8]])
    stored = some.rows(slice(0, 8)).float()
    cosine = torch.nn.functional.cosine_similarity(vectors, stored).min().item()
    print(f"stored vectors against the network's, 8 photos: least cosine {cosine:.4f}", flush=True)


def trained(train: Path, dev: Path, lm: str, words: list[str], folder: Path, bfloat16: bool) -> float:
    """Minutes of a run of `clipcap train`; one that is done is not done again."""
    note = folder / "minutes.json"
    if not note.is_file():
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bfloat16 else "no"
        began = time.monotonic()
        resume = ["--resume"] * (folder / "clipcap-last").exists()
        flags = ["--data", str(train), "--val", str(dev), "--lm", lm, "--out_dir", str(folder), *words, *resume]
        if clipcap(["train", *flags]):
            raise SystemExit("training failed, see above")
        note.write_text(json.dumps((time.monotonic() - began) / 60), encoding="utf-8")
    return json.loads(note.read_text(encoding="utf-8"))


def evaluated(folder: Path, dev: Path, train: Path, held_out: Features, by_neighbours: bool = False) -> list[str]:
    """Captions of the held-out photos, with a report of pictures beside them.

    Args:
        by_neighbours: choose them by the captions of similar training photos.
    """
    out = folder / ("evaluation_by_neighbours" if by_neighbours else "evaluation")
    if not (out / PREDICTIONS).is_file():
        words = ["--load_pt", str(folder), "--data", str(dev), "--train_data", str(train), "--out", str(out)]
        words += ["--rerank", "consensus", "--datastore", str(train)] if by_neighbours else []
        if clipcap(["evaluate", *words, "--no_clip_score", "--no_java"]):
            raise SystemExit("evaluation failed, see above")
        print(f"report: {out / REPORT}", flush=True)
    captions = read_predictions(out / PREDICTIONS)
    return [captions[str(i)] for i in held_out.image_ids]


def captioned_by_others(folder: Path, held_out: Features) -> list[str]:
    """Captions of each held-out photo by what is known of the next one: a captioner that looks is lost."""
    captioner = Captioner.from_pretrained(folder)
    rows = np.roll(np.arange(held_out.num_images), -1).tolist()
    stored: list[Any] = [held_out.given([row]) for row in rows]
    found = captioner.caption(stored, DecodeConfig())
    return [several[0].text for several in found]


def report(name: str, captions: list[str], references: list[list[str]], java: bool, minutes: float) -> Scores:
    """Print a row of the table."""
    scores = score(captions, references, with_java=java)
    low, high = scores.interval("CIDEr-D")
    figures = [f"{scores.corpus['CIDEr-D']:.3f} [{low:.3f}, {high:.3f}]"]
    figures += [f"{scores.corpus[metric]:.3f}" if metric in scores.corpus else "" for metric in METRICS[1:]]
    words = sum(len(caption.split()) for caption in captions) / len(captions)
    figures += [f"{distinct_share(captions):.2f}", f"{words:.1f}", f"{bad_endings(captions):.1%}", f"{minutes:.0f}"]
    print(f"| {name} | {' | '.join(figures)} |", flush=True)
    return scores


def compare(found: dict[str, Scores]) -> None:
    """Each run against the one before it, by paired bootstrap."""
    names = list(found)
    for other, name in pairwise(names):
        gain = found[name].compare(found[other], "CIDEr-D", n=10_000)
        print(f"{name} against {other}: CIDEr-D {gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], "
              f"p {gain.p_value:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
