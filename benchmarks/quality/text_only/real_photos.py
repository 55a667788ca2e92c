"""Text-only training on real photos, by a text tower trained for stored EfficientNet features of Flickr8k.

python -m benchmarks.quality.text_only.real_photos [--seeds 1 2 3] [--runs paired auto 0] [--out runs/text_only]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import machine
from benchmarks.quality.baselines import nearest
from benchmarks.quality.seeds import describe
from benchmarks.quality.text_only.caption_language import train_language_model
from benchmarks.speed.train.bench import SHARED
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.memory import TextMemory
from clipcap.contrastive.config import LockedImageConfig
from clipcap.contrastive.locked_image import train_locked_image
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.evaluation.metrics.recall import recall
from clipcap.evaluation.metrics.score import Scores, score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features, write_features
from clipcap.features.gap import describe_gap, measure_features
from clipcap.features.parse_texts import parse_texts
from clipcap.features.project import project
from clipcap.models.encoders.load import load_encoder
from clipcap.training.config import TrainConfig
from clipcap.training.train import train

STORED = SHARED / "features"
FEW = 500  # captioned photos of mixed training
RUNS = ("paired", "auto", "0", "memory", "few", "mixed")
AGAINST = {"paired": "auto", "0": "auto", "memory": "auto", "few": "mixed"}  # a run → the one it is compared with
LONGEST = 40  # tokens of a caption; the language model takes 64 positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="a run of each")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="which")
    parser.add_argument("--steps", type=int, default=300, help="of 40 captions, the same for all runs")
    parser.add_argument("--out", type=Path, default=Path("runs/text_only"))
    args = parser.parse_args()
    if not STORED.is_dir():
        parser.exit(1, f"{STORED}: no such folder; set CLIPCAP_SHARED to the folder that holds features/\n")
    print(machine(), flush=True)
    out: Path = args.out
    encoder = dual_encoder(out)
    held_out, training = (read_features(str(in_common_space(out, name, encoder))) for name in ("dev", "train"))
    print(recall_of(held_out, encoder), describe_gap(held_out.path), sep="\n", flush=True)
    references = captions_by_image(held_out)
    order = [references[str(i)] for i in held_out.image_ids]
    print(
        f"nearest photo: CIDEr-D {score(nearest(training, held_out), order, with_java=False).corpus['CIDEr-D']:.3f}"
    )
    auto = measure_features(held_out).noise(False)
    found: dict[str, list[Scores]] = {}
    for seed in args.seeds:
        for run in args.runs:
            trained = "auto" if run == "memory" else run
            folder = out / f"{trained}_{args.steps}_{seed}"
            note = folder / f"captions_{run}.json"
            if not note.exists():
                train(run_config(out, trained, auto, folder, seed, args.steps))
                captions = captions_of(folder, held_out, out / "texts" if run == "memory" else None)
                note.write_text(json.dumps(captions, indent=1), encoding="utf-8")
            scores = score(json.loads(note.read_text(encoding="utf-8")), order, with_java=False)
            found.setdefault(run, []).append(scores)
            low, high = scores.interval("CIDEr-D")
            print(f"{run:8} seed {seed}: CIDEr-D {scores.corpus['CIDEr-D']:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    report(found)


def dual_encoder(out: Path) -> str:
    """The checkpoint of a text tower for the stored features; a twentieth of the training photos decides which."""
    folder = out / "dual_encoder"
    for name, stored in (("train", "train"), ("dev", "val")):
        if not (path := out / f"photos_{name}.pkl").exists():
            features = read_features(str(STORED / f"flickr8k_{stored}_efficientnet_lite0.pkl"))
            meta = replace(features.meta, encoder="import:efficientnet-lite0", encoder_guessed=False)
            write(path, replace(features, meta=meta))
    options = {"data": str(out / "photos_train.pkl"), "val": "0.05", "epochs": 8}
    resume = (folder / "clip-last").is_dir()  # a finished run is not trained on
    return str(train_locked_image(LockedImageConfig.of(**options, out_dir=str(folder), resume=resume)))


def write(path: Path, features: Features) -> None:
    """Write features of photos in memory."""
    write_features(
        path, embeddings=features.rows(slice(None)), image_ids=list(features.image_ids),
        image_paths=list(features.image_paths), captions=features.captions_by_row(), meta=features.meta,
    )  # fmt: skip


def in_common_space(out: Path, name: str, encoder: str) -> Path:
    """Photos projected next to texts; beside those to train on lie texts, few photos and the language model."""
    path = out / f"common_{name}.pkl"
    if not path.exists():
        project(out / f"photos_{name}.pkl", path, encoder)
    if name == "dev":
        return path
    features = read_features(str(path))
    if not (few := out / "few.pkl").exists():
        write(few, features.subset_by_row(np.arange(0, features.num_images, features.num_images / FEW).astype(int)))
    if not (out / "texts").exists():
        parse_texts(data_path=str(path), clip_model_type=encoder, out=str(out / "texts"))
    if not (language := out / "language_model").exists():
        train_language_model(language, list(features.captions))
    return path


def recall_of(held_out: Features, encoder: str) -> str:
    """How often the photos and their captions find each other."""
    towers, captions = load_encoder(encoder), list(held_out.captions)
    texts = torch.cat([towers.encode_texts(captions[i : i + 256]) for i in range(0, len(captions), 256)])  # [M, D]
    found = recall(held_out.rows(slice(None)), texts, held_out.caption_rows)
    return "  ".join(f"{name} {value:.3f}" for name, value in found.items())


def run_config(out: Path, run: str, auto: float, folder: Path, seed: int, steps: int) -> TrainConfig:
    """A mapper before the small language model, which stays as it is."""
    photos, few, texts = str(out / "common_train.pkl"), str(out / "few.pkl"), str(out / "texts")
    own = {
        "paired": {"data": photos},
        "auto": {"objective": "text", "data": texts, "noise": str(auto)},
        "0": {"objective": "text", "data": texts, "noise": "0"},
        "few": {"data": few},
        "mixed": {"objective": "text", "data": (few, texts), "noise": str(auto)},
    }
    shape = {"lm": str(out / "language_model"), "only_prefix": True, "prefix_length": 5, "normalize_prefix": True}
    loop = {"epochs": 100, "max_steps": steps, "bs": 40, "lr": 4e-3, "seed": seed}
    resume = (folder / "clipcap-last").is_dir()
    return TrainConfig.of(**shape, **loop, **own[run], out_dir=str(folder), resume=resume)


def captions_of(folder: Path, held_out: Features, texts: Path | None) -> list[str]:
    """Captions of the held-out photos by beam search, with a memory of texts or without."""
    captioner = Captioner.from_pretrained(folder / "clipcap-last")
    if texts:
        captioner.memory = TextMemory.open(texts, captioner.model.config, captioner.encoder.logit_scale)
    rows = held_out.rows(slice(None))  # [N, D]
    found = captioner.caption(list(rows), DecodeConfig(beam=True, max_new_tokens=LONGEST))
    return [several[0].text for several in found]


def report(found: dict[str, list[Scores]]) -> None:
    """Each run's mean, and what the one it is compared with gains over it, seed by seed."""
    for run, several in found.items():
        line = (
            f"{run:8} CIDEr-D {np.mean([scores.corpus['CIDEr-D'] for scores in several]):.3f} of {len(several)} seeds"
        )
        for ours, other in zip(found.get(AGAINST.get(run, ""), []), several):
            line += f"; {AGAINST[run]} over it {describe(ours.compare(other, 'CIDEr-D', n=10_000))}"
        print(line)


if __name__ == "__main__":
    main()
